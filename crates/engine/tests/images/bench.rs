//! A registry, a stand-in for one, and small images.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use shoal_api::image::{ImageConfig, PullProgress, RegistryAuth};
use shoal_engine::io::images::ImageStore;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A registry of our own, with one user; it ends with the test.
pub(crate) struct Registry {
    child: Child,
    pub(crate) address: String,
    _dir: TempDir,
}

impl Registry {
    pub(crate) fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), "")
    }

    /// Speaks https with a certificate that nobody vouches for.
    pub(crate) fn start_with_tls() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ])
            .args([
                "-subj",
                "/CN=registry",
                "-days",
                "2",
                "-keyout",
                "key.pem",
                "-out",
                "cert.pem",
            ])
            .current_dir(dir.path())
            .output()
            .expect("openssl is installed");
        assert!(made.status.success(), "{made:?}");
        let path = dir.path().display();
        let tls = format!("  tls:\n    certificate: {path}/cert.pem\n    key: {path}/key.pem\n");
        Self::start_in(dir, &tls)
    }

    fn start_in(dir: TempDir, tls: &str) -> Self {
        let password = Command::new("htpasswd")
            .args(["-Bbn", "ann", "secret"])
            .output()
            .expect("apache2-utils is installed");
        fs::write(dir.path().join("htpasswd"), password.stdout).unwrap();
        // The port is free now; nothing else on this host takes ports at random from this range so quickly.
        let port = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let address = format!("127.0.0.1:{port}");
        let (root, users) = (dir.path().join("data"), dir.path().join("htpasswd"));
        let config = format!(
            "version: 0.1\nlog:\n  level: error\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {address}\n{tls}auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
            root.display(),
            users.display()
        );
        let file = dir.path().join("config.yml");
        fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self {
            child,
            address,
            _dir: dir,
        };
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(
                std::time::Instant::now() < deadline,
                "the registry does not listen"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        registry
    }

    pub(crate) fn name(&self, rest: &str) -> String {
        format!("{}/{rest}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn ann(password: &str) -> RegistryAuth {
    RegistryAuth {
        username: "ann".into(),
        password: password.into(),
        ..RegistryAuth::default()
    }
}

pub(crate) fn at(registry: &Registry, password: &str) -> RegistryAuth {
    RegistryAuth {
        server_address: registry.address.clone(),
        ..ann(password)
    }
}

/// Listens to progress and keeps it.
pub(crate) fn listener() -> (
    mpsc::Sender<PullProgress>,
    tokio::task::JoinHandle<Vec<PullProgress>>,
) {
    let (sender, mut lines) = mpsc::channel(64);
    let kept = tokio::spawn(async move {
        let mut kept = Vec::new();
        while let Some(line) = lines.recv().await {
            kept.push(line);
        }
        kept
    });
    (sender, kept)
}

pub(crate) fn store() -> (TempDir, ImageStore) {
    let dir = tempfile::tempdir().unwrap();
    let store = ImageStore::open(dir.path()).unwrap();
    (dir, store)
}

/// A root file system of one static program.
pub(crate) fn rootfs() -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    archive
        .append_path_with_name("/bin/busybox", "bin/busybox")
        .unwrap();
    let mut link = tar::Header::new_ustar();
    link.set_entry_type(tar::EntryType::Symlink);
    link.set_size(0);
    link.set_mode(0o777);
    archive.append_link(&mut link, "bin/sh", "busybox").unwrap();
    archive.into_inner().unwrap()
}

pub(crate) async fn import(store: &ImageStore, name: &str) -> String {
    let config = ImageConfig {
        cmd: Some(vec!["/bin/sh".into()]),
        env: vec!["A=1".into()],
        ..ImageConfig::default()
    };
    store
        .import_rootfs(std::io::Cursor::new(rootfs()), config, Some(name))
        .await
        .unwrap()
        .to_string()
}

pub(crate) fn names_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Answers every request with what `answer` makes of its path and head, on one connection each.
pub(crate) fn serve(answer: impl Fn(&str, &str) -> Vec<u8> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    // Ends with the test's process; it holds nothing but a socket.
    std::thread::spawn(move || {
        let answer = Arc::new(answer);
        for stream in listener.incoming() {
            let (Ok(mut stream), answer) = (stream, Arc::clone(&answer)) else {
                continue;
            };
            std::thread::spawn(move || {
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n")
                    && stream.read(&mut byte).is_ok_and(|count| count == 1)
                {
                    request.push(byte[0]);
                    if request[0] != b'G' && request[0] != b'H' {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&request).into_owned();
                let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
                let _ = stream.write_all(&answer(&path, &text));
            });
        }
    });
    address
}

pub(crate) fn ok(body: &[u8]) -> Vec<u8> {
    let mut answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    )
    .into_bytes();
    answer.extend_from_slice(body);
    answer
}

pub(crate) fn digest(content: &[u8]) -> String {
    use sha2::Digest as _;
    format!("sha256:{}", hex::encode(sha2::Sha256::digest(content)))
}

/// An image of one layer as a registry serves it: manifest and configuration for `layer`, which unpacks to `plain`.
pub(crate) fn documents(plain: &[u8], layer_digest: &str, layer_size: usize) -> (String, String) {
    let arch = if cfg!(target_arch = "aarch64") {
        "arm64"
    } else {
        "amd64"
    };
    let config = format!(
        r#"{{"os":"linux","architecture":"{arch}","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        digest(plain)
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{}","size":{}}},"layers":[{{"mediaType":"l","digest":"{layer_digest}","size":{layer_size}}}]}}"#,
        digest(config.as_bytes()),
        config.len(),
    );
    (manifest, config)
}

pub(crate) async fn pull_error(store: &ImageStore, name: &str) -> String {
    let (progress, _lines) = listener();
    store
        .pull(name, None, None, progress)
        .await
        .unwrap_err()
        .report()
}
