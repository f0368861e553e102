//! Another Linux kernel as a process: User-Mode Linux on this machine's own root file system.
//!
//! For what this machine's kernel lacks: IPVS, WireGuard, control groups of version 2 alone. The guest sees `/` as it is
//! here, below a file system in memory that takes all writes; only its exchange folder is shared. One processor, slow
//! system calls: it shows what happens, not how fast.

use std::{
    fmt::Write as _,
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};

/// Names the kernel: a User-Mode Linux binary with what is to be tried built in.
pub const VARIABLE: &str = "SHOAL_LAB_KERNEL";
/// What the guest's process 1 does.
const INIT: &str = include_str!("kernel_init.sh");
/// Takes away `PTRACE_GETREGSET` and `PTRACE_SETREGSET` from a program: a filter of system calls, then the program.
///
/// On processors with AMX the kernel takes back extended registers only as a whole, of 11 KiB, while this kind of kernel
/// has room for 2.7. Without these two calls it falls back to the registers up to SSE.
const WITHOUT_EXTENDED_REGISTERS: &str = r#"
my $filter = join "", map { pack "SCCL", @$_ }
    [0x20, 0, 0, 0], [0x15, 0, 3, 101], [0x20, 0, 0, 16], [0x15, 2, 0, 0x4204], [0x15, 1, 0, 0x4205],
    [0x06, 0, 0, 0x7fff0000], [0x06, 0, 0, 0x00050005];
syscall(317, 1, 0, pack("Sx6P", 7, $filter)) == 0 or die "seccomp: $!";
exec @ARGV or die "$ARGV[0]: $!";
"#;
/// What the C library must not use then, since threads would mix it up.
const NO_EXTENDED_REGISTERS: &str = "glibc.cpu.hwcaps=-AVX,-AVX2,-AVX512F,-AVX512VL,-AVX_Fast_Unaligned_Load,-AVX2_Usable,-AVX_Usable";
/// Lines of the kernel's own messages that are told when a guest dies.
const LAST_WORDS: usize = 20;

/// A kernel that can be booted.
#[derive(Debug)]
pub struct Kernel {
    binary: PathBuf,
}

/// A command for a guest.
#[derive(Debug)]
pub struct Job<'a> {
    /// Program and arguments.
    pub words: &'a [&'a str],
    /// Its environment besides the paths.
    pub env: &'a [(&'a str, &'a str)],
    /// Folder in which it runs.
    pub folder: &'a Path,
    /// Memory of the guest in MiB, which holds its files as well.
    pub memory_mib: u32,
    /// After this long the guest is ended.
    pub patience: Duration,
}

/// How a command in a guest ended.
#[derive(Debug)]
pub struct Ended {
    /// Its exit status.
    pub status: i32,
    /// What it wrote, both streams in one.
    pub said: String,
}

impl Kernel {
    /// The kernel that the environment names, or why there is none to be had.
    pub fn find() -> Result<Self, String> {
        let Some(binary) = std::env::var_os(VARIABLE).map(PathBuf::from) else {
            return Err(format!("{VARIABLE} names no User-Mode Linux kernel"));
        };
        if !binary.is_file() {
            return Err(format!(
                "there is no kernel at {VARIABLE}={}",
                binary.display()
            ));
        }
        if !is_root() {
            return Err(
                "another kernel's process needs a namespace of its own, and that root".into(),
            );
        }
        Ok(Self { binary })
    }

    /// Boots a guest, runs a command in it as root and waits until both have ended.
    ///
    /// # Errors
    /// The guest did not come up, died, or took longer than it may.
    pub fn run(&self, job: &Job<'_>) -> Result<Ended> {
        let exchange = tempfile::tempdir()?;
        let path = |name: &str| exchange.path().join(name);
        let trimmed = has_large_registers();
        fs::write(path("job"), script(job, trimmed))?;
        fs::write(path("init"), INIT)?;
        make_executable(&path("init"))?;
        let messages = File::create(path("messages"))?;
        // The guest is many processes, which end with their namespace. A shell and not the kernel is its process 1: as
        // such a kernel could not abort when it panics.
        let seconds = job.patience.as_secs().to_string();
        let mut guest = Command::new("timeout");
        guest
            .args(["-s", "KILL", &seconds])
            .args(["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["--", "sh", "-c", "setsid \"$@\" & wait $!", "sh"]);
        if trimmed {
            guest.args(["perl", "-e", WITHOUT_EXTENDED_REGISTERS]);
        }
        guest
            .arg(&self.binary)
            .arg(format!("mem={}M", job.memory_mib))
            .arg(format!("uml_dir={}/", exchange.path().display()))
            .arg(format!("init={}", path("init").display()))
            .arg(format!("EXCHANGE={}", exchange.path().display()))
            .args(["umid=guest", "root=/dev/root", "rootfstype=hostfs"])
            .args(["rootflags=/", "ro", "con=null", "con0=null,fd:1"])
            .args(["noreboot", "panic=-1"])
            .stdin(Stdio::null())
            .stdout(messages.try_clone()?)
            .stderr(messages);
        let ended = guest.status().context("cannot run timeout")?;
        let said = fs::read(path("said")).unwrap_or_default();
        let said = String::from_utf8_lossy(&said).into_owned();
        match fs::read_to_string(path("status")) {
            Ok(status) => Ok(Ended {
                status: status.trim().parse().context("the guest's status")?,
                said,
            }),
            Err(_) => bail!(
                "the guest ended with {ended} before {:?} did\n{said}\nits kernel said:\n{}",
                job.words,
                last_lines(&fs::read(path("messages")).unwrap_or_default())
            ),
        }
    }
}

/// The command as a shell script.
fn script(job: &Job<'_>, trimmed: bool) -> String {
    let mut script = String::from("#!/bin/sh\n");
    if trimmed {
        let _ = writeln!(script, "export GLIBC_TUNABLES={NO_EXTENDED_REGISTERS}");
    }
    for (name, value) in job.env {
        let _ = writeln!(script, "export {name}={}", quoted(value));
    }
    let words: Vec<String> = job.words.iter().map(|word| quoted(word)).collect();
    let folder = quoted(&job.folder.to_string_lossy());
    let _ = writeln!(script, "cd {folder} && exec {}", words.join(" "));
    script
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// Whether the processor has AMX.
fn has_large_registers() -> bool {
    fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains(" amx_tile"))
}

fn last_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(LAST_WORDS)..].join("\n")
}

fn make_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o755),
    )?)
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    fs::metadata("/proc/self").is_ok_and(|own| own.uid() == 0)
}
