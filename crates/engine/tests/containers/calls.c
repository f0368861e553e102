/* Makes every system call there may be, each in a process of its own, and tells which were refused.
   No library, so that it runs in an empty image. One line per call: its name or number, and E for EPERM, K for killed by
   the filter, A for anything else. */

#define CALLS 512
#define SIGCHLD 17
#define SIGSYS 31
#define ALARM_SECONDS 3

static long call6(long n, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long out;
    __asm__ volatile("syscall" : "=a"(out) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return out;
}

/* The gate of 32-bit programs, which a 64-bit one may use as well. */
static long call_i386(long n, long a, long b) {
    long out;
    __asm__ volatile("int $0x80" : "=a"(out) : "a"(n), "b"(a), "c"(b) : "r8", "r9", "r10", "r11", "memory");
    return out;
}

static void put(const char *text) {
    long length = 0;
    while (text[length]) length++;
    call6(1, 1, (long)text, length, 0, 0, 0);
}

static void put_number(long number) {
    char digits[24];
    int at = 23;
    digits[at] = 0;
    do digits[--at] = '0' + number % 10; while (number /= 10);
    put(digits + at);
}

static long fork_one(void) { return call6(56, SIGCHLD, 0, 0, 0, 0, 0); }

/* Ends the child with what the call came to. */
static void judge(long result) { call6(231, result == -1 ? 1 : 0, 0, 0, 0, 0, 0); }

static const char *verdict(int status) {
    if ((status & 0x7f) == SIGSYS) return " K\n";
    return (status & 0x7f) == 0 && (status >> 8 & 0xff) == 1 ? " E\n" : " A\n";
}

static int wait_for(long pid) {
    int status = 0;
    call6(61, pid, (long)&status, 0, 0, 0, 0);
    return status;
}

static void one(const char *name, int gate, long n, long a, long b, long c) {
    long pid = fork_one();
    if (pid == 0) judge(gate == 32 ? call_i386(n, a, b) : call6(n, a, b, c, 0, 0, 0));
    int status = wait_for(pid);
    put(name);
    put(verdict(status));
}

void _start(void) {
    static long children[CALLS];
    for (long n = 0; n < CALLS; n++) {
        children[n] = fork_one();
        if (children[n] == 0) {
            /* Some calls wait for what never comes. */
            call6(37, ALARM_SECONDS, 0, 0, 0, 0, 0);
            judge(call6(n, -1, -1, -1, -1, -1, -1));
        }
    }
    for (long n = 0; n < CALLS; n++) {
        int status = wait_for(children[n]);
        put_number(n);
        put(verdict(status));
    }
    for (long family = 0; family < 64; family++) {
        long pid = fork_one();
        if (pid == 0) judge(call6(41, family, 5, 0, 0, 0, 0));
        int status = wait_for(pid);
        put("family:");
        put_number(family);
        put(verdict(status));
    }
    one("family:38+2^32", 64, 41, 38 | 1L << 32, 5, 0);
    one("i386:getpid", 32, 20, 0, 0, 0);
    one("i386:socketcall", 32, 102, 1, 0, 0);
    one("i386:socket", 32, 359, 38, 5, 0);
    one("x32:getpid", 64, 0x40000000 | 39, 0, 0, 0);
    one("x32:socket", 64, 0x40000000 | 41, 38, 5, 0);
    one("clone:NEWUSER", 64, 56, 0x10000000 | SIGCHLD, 0, 0);
    one("clone:NEWNS", 64, 56, 0x00020000 | SIGCHLD, 0, 0);
    one("clone:NEWNET", 64, 56, 0x40000000 | SIGCHLD, 0, 0);
    one("unshare:NEWUSER", 64, 272, 0x10000000, 0, 0);
    one("personality:query", 64, 135, 0xffffffff, 0, 0);
    one("personality:ADDR_NO_RANDOMIZE", 64, 135, 0x0040000, 0, 0);
    call6(231, 0, 0, 0, 0, 0, 0);
}
