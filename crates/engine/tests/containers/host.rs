//! An engine of its own for one test.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use shoal_api::container::{ContainerId, ContainerSpec, LogQuery, NetworkMode, StdStream};
use shoal_api::image::ImageConfig;
use shoal_engine::io::engine::{WaitCondition, WaitOutcome};
use shoal_engine::io::images::ImageStore;
use shoal_engine::io::network::{ContainerNetwork, NoNetworks};
use shoal_engine::io::{Attachment, Engine, EngineConfig, EngineError};
use shoal_engine::shim::protocol::Streams;
use tokio_stream::StreamExt;

pub(crate) const IMAGE: &str = "box:latest";

static HOSTS: AtomicU32 = AtomicU32::new(0);

pub(crate) struct Host {
    pub(crate) engine: Engine,
    pub(crate) root: PathBuf,
    pub(crate) cgroup: String,
    _dir: Option<tempfile::TempDir>,
}

impl Host {
    /// An engine with a busybox image.
    pub(crate) async fn new() -> Self {
        let host = Self::bare().await;
        host.import(IMAGE, busybox).await;
        host
    }

    pub(crate) async fn bare() -> Self {
        Self::with_network(Arc::new(NoNetworks)).await
    }

    pub(crate) async fn with_network(network: Arc<dyn ContainerNetwork>) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("shoal-engine-")
            .tempdir()
            .expect("temporary directory");
        let root = dir.path().to_owned();
        let cgroup = format!(
            "shoal-test-{}-{}",
            std::process::id(),
            HOSTS.fetch_add(1, Ordering::Relaxed)
        );
        let engine = Self::open(&root, &cgroup, network).await;
        Self {
            engine,
            root,
            cgroup,
            _dir: Some(dir),
        }
    }

    async fn open(root: &Path, cgroup: &str, network: Arc<dyn ContainerNetwork>) -> Engine {
        let images = ImageStore::open(&root.join("lib")).expect("image store");
        let config = EngineConfig {
            root: root.join("lib"),
            run_dir: root.join("run"),
            cgroup_parent: cgroup.to_owned(),
            shim_exe: env!("CARGO_BIN_EXE_shoal-shim").into(),
            images,
            network,
            cdi_spec_dirs: vec![root.join("cdi")],
        };
        Engine::open(config).await.expect("engine")
    }

    /// Drops the engine as a dying daemon would, and opens it again.
    pub(crate) async fn reopen(&mut self) {
        self.engine = Self::open(&self.root, &self.cgroup, Arc::new(NoNetworks)).await;
    }

    /// Makes an image of one layer.
    pub(crate) async fn import(&self, name: &str, fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) {
        self.import_with(name, ImageConfig::default(), fill).await;
    }

    pub(crate) async fn import_with(
        &self,
        name: &str,
        config: ImageConfig,
        fill: impl FnOnce(&mut tar::Builder<Vec<u8>>),
    ) {
        let mut tar = tar::Builder::new(Vec::new());
        fill(&mut tar);
        let bytes = tar.into_inner().expect("archive");
        self.engine
            .images()
            .import_rootfs(std::io::Cursor::new(bytes), config, Some(name))
            .await
            .expect("import");
    }

    /// Creates and starts a container.
    pub(crate) async fn start(&self, spec: ContainerSpec) -> ContainerId {
        let id = self.engine.create(spec).await.expect("create");
        self.engine.start(id.as_str()).await.expect("start");
        id
    }

    /// Runs a shell command to its end; returns exit code and output of both streams.
    pub(crate) async fn sh(&self, command: &str) -> (i32, String) {
        self.run(sh(command)).await
    }

    /// Runs a container to its end and removes it.
    pub(crate) async fn run(&self, spec: ContainerSpec) -> (i32, String) {
        let id = self.engine.create(spec).await.expect("create");
        let (code, output) = self
            .run_created(&id)
            .await
            .unwrap_or_else(|err| panic!("start: {}", err.report()));
        self.engine
            .remove(id.as_str(), false, true)
            .await
            .expect("remove");
        (code, output)
    }

    pub(crate) async fn run_created(&self, id: &ContainerId) -> Result<(i32, String), EngineError> {
        let streams = Streams {
            stdin: false,
            stdout: true,
            stderr: true,
        };
        let attachment = self.engine.attach(id.as_str(), streams).await?;
        let ended = self.engine.wait(id.as_str(), WaitCondition::NextExit)?;
        self.engine.start(id.as_str()).await?;
        let output = read(attachment).await;
        let WaitOutcome { exit_code, .. } = ended.await;
        Ok((exit_code, output))
    }

    pub(crate) async fn wait(&self, id: &ContainerId) -> i32 {
        self.engine
            .wait(id.as_str(), WaitCondition::NotRunning)
            .expect("wait")
            .await
            .exit_code
    }

    pub(crate) async fn logs(&self, id: &ContainerId, query: LogQuery) -> String {
        let lines = self
            .engine
            .logs(
                id.as_str(),
                LogQuery {
                    stdout: true,
                    stderr: true,
                    ..query
                },
            )
            .expect("logs");
        let lines: Vec<_> = lines.collect().await;
        lines
            .into_iter()
            .map(|line| String::from_utf8(line.expect("line").bytes).expect("text"))
            .collect()
    }

    /// Waits until the container has written `text`.
    pub(crate) async fn wait_for_output(&self, id: &ContainerId, text: &str) {
        let query = LogQuery {
            stdout: true,
            stderr: true,
            follow: true,
            ..LogQuery::default()
        };
        let mut lines = self.engine.logs(id.as_str(), query).expect("logs");
        let mut seen = String::new();
        while let Some(line) = lines.next().await {
            seen.push_str(&String::from_utf8_lossy(&line.expect("line").bytes));
            if seen.contains(text) {
                return;
            }
        }
        panic!("the container ended without {text:?}; it said {seen:?}");
    }

    pub(crate) async fn exec(&self, id: &ContainerId, command: &[&str]) -> (i32, String) {
        let spec = shoal_api::container::ExecSpec {
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            attach_stdout: true,
            attach_stderr: true,
            ..Default::default()
        };
        let exec = self
            .engine
            .exec_create(id.as_str(), spec)
            .expect("exec create");
        let output = read(
            self.engine
                .exec_start(&exec)
                .await
                .unwrap_or_else(|err| panic!("{}", err.report())),
        )
        .await;
        let code = self
            .engine
            .exec_inspect(&exec)
            .expect("exec inspect")
            .exit_code;
        (code.expect("the exec has ended"), output)
    }

    /// Directories of control groups below this host's parent, in all hierarchies.
    pub(crate) fn cgroups(&self) -> Vec<PathBuf> {
        let mounts = std::fs::read_dir("/sys/fs/cgroup")
            .expect("cgroups")
            .flatten()
            .map(|entry| entry.path());
        mounts
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .flat_map(|mount| {
                std::fs::read_dir(mount.join(&self.cgroup))
                    .into_iter()
                    .flatten()
                    .flatten()
            })
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Waits until no control group is left: they go a moment after the end is told.
    pub(crate) async fn cgroups_gone(&self) {
        for _ in 0..500 {
            if self.cgroups().is_empty() {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        panic!("left behind: {:?}", self.cgroups());
    }

    /// Mounts of this process's namespace below this host's directory.
    pub(crate) fn mounts(&self) -> Vec<String> {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mounts");
        let root = self.root.display().to_string();
        table
            .lines()
            .filter(|line| line.contains(&root))
            .map(str::to_owned)
            .collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What a failed test left running ends here; the shims then end by themselves.
        for dir in self.cgroups() {
            let procs = std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
            for pid in procs.lines().filter_map(|line| line.parse().ok()) {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        for _ in 0..100 {
            let left = self
                .cgroups()
                .into_iter()
                .filter(|dir| std::fs::remove_dir(dir).is_err())
                .count();
            if left == 0 {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let parents = std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path());
        for mount in parents.chain([PathBuf::from("/sys/fs/cgroup")]) {
            let _ = std::fs::remove_dir(mount.join(&self.cgroup));
        }
    }
}

/// A container that runs a shell command without any network.
pub(crate) fn sh(command: &str) -> ContainerSpec {
    cmd(&["/bin/sh", "-c", command])
}

pub(crate) fn cmd(words: &[&str]) -> ContainerSpec {
    let mut spec = ContainerSpec {
        image: IMAGE.into(),
        cmd: Some(words.iter().map(|&word| word.to_owned()).collect()),
        ..ContainerSpec::default()
    };
    spec.host.network_mode = NetworkMode::None;
    spec
}

/// Everything a process writes, until it ends.
pub(crate) async fn read(mut attachment: Attachment) -> String {
    let mut bytes = Vec::new();
    while let Some((stream, piece)) = attachment.output.next().await {
        assert_ne!(stream, StdStream::Stdin);
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

const APPLETS: &[&str] = &[
    "sh", "true", "false", "echo", "cat", "sleep", "id", "ls", "mkdir", "touch", "rm", "env",
    "stty", "hostname", "kill", "ps", "mount", "grep", "wc", "dd", "head", "printf", "readlink",
    "pwd", "ip", "test", "chown", "stat", "tr", "umount", "seq", "chroot", "ln", "mknod",
];

/// A root filesystem of busybox.
pub(crate) fn busybox(tar: &mut tar::Builder<Vec<u8>>) {
    for name in [
        "bin/",
        "etc/",
        "tmp/",
        "home/",
        "root/",
        "var/",
        "var/data/",
    ] {
        dir(tar, name);
    }
    let bytes = std::fs::read("/bin/busybox").expect("busybox-static is installed");
    file(tar, "bin/busybox", &bytes, 0o755);
    for applet in APPLETS {
        link(tar, &format!("bin/{applet}"), "busybox");
    }
    file(
        tar,
        "etc/passwd",
        b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home:/bin/sh\n",
        0o644,
    );
    file(
        tar,
        "etc/group",
        b"root:x:0:\nuser:x:1000:\nextra:x:2000:user\n",
        0o644,
    );
    file(tar, "bin/text", b"not a program\n", 0o644);
    file(tar, "var/data/seed", b"from the image\n", 0o640);
}

pub(crate) fn dir(tar: &mut tar::Builder<Vec<u8>>, name: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.set_size(0);
    tar.append_data(&mut header, name, std::io::empty())
        .expect("archive");
}

pub(crate) fn file(tar: &mut tar::Builder<Vec<u8>>, name: &str, bytes: &[u8], mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, name, bytes).expect("archive");
}

pub(crate) fn link(tar: &mut tar::Builder<Vec<u8>>, name: &str, target: &str) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_mode(0o777);
    header.set_size(0);
    tar.append_link(&mut header, name, target).expect("archive");
}
