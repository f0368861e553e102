/* Goes up beyond "/" by every way that chroot(2) and setns(2) leave to the privileged, and prints what stands there. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

static int list(const char *way)
{
	DIR *dir = opendir(".");
	struct dirent *entry;
	while (dir && (entry = readdir(dir)))
		if (entry->d_name[0] != '.')
			printf("%s %s\n", way, entry->d_name);
	return dir ? 0 : 1;
}

static int up(void)
{
	for (int step = 0; step < 64; step++)
		if (chdir(".."))
			return 1;
	return 0;
}

int main(void)
{
	int top = open("/", O_RDONLY | O_DIRECTORY), own = open("/proc/self/ns/mnt", O_RDONLY);
	if (mkdir("/below", 0755) || chroot("/below") || fchdir(top) || up() || list("chroot"))
		return 1;
	if (setns(own, CLONE_NEWNS) || list("setns") || up() || list("setns"))
		return 2;
	return 0;
}
