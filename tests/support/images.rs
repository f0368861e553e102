//! Real images made of Debian packages, and a real registry that wants a password.

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, bail};
use serde_json::json;

use crate::{lab::text, wait};

/// Account of the test's registry.
pub const USER: &str = "shoal";
/// Its password.
pub const PASSWORD: &str = "fish & chips";

/// Debian's `docker-registry`, on an address of its own, ended when dropped.
pub struct Registry {
    /// `host:port`.
    pub addr: String,
    child: Child,
    folder: tempfile::TempDir,
}

impl Registry {
    /// Starts it and waits until it takes connections.
    pub fn start(addr: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let accounts = Command::new("htpasswd")
            .args(["-Bbn", USER, PASSWORD])
            .output()?;
        let accounts_file = folder.path().join("accounts");
        fs::write(&accounts_file, text(&accounts)?)?;
        let config = folder.path().join("config.yml");
        let storage = folder.path().join("storage");
        fs::write(
            &config,
            format!(
                "version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: {addr}\n\
                 auth:\n  htpasswd:\n    realm: shoal\n    path: {}\nlog:\n  level: error\n",
                storage.display(),
                accounts_file.display(),
            ),
        )?;
        let child = Command::new("docker-registry")
            .args(["serve".as_ref(), config.as_os_str()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry is not installed")?;
        let registry = Self {
            addr: addr.to_owned(),
            child,
            folder,
        };
        let to: SocketAddr = addr.parse()?;
        wait("the registry", || {
            Ok(TcpStream::connect_timeout(&to, Duration::from_secs(1))
                .map(drop)
                .map_err(|e| e.to_string()))
        })?;
        Ok(registry)
    }

    /// A folder for `DOCKER_CONFIG` with the registry's password in it.
    pub fn credentials(&self) -> Result<PathBuf> {
        let folder = self.folder.path().join("client");
        fs::create_dir_all(&folder)?;
        let auth = base64(format!("{USER}:{PASSWORD}").as_bytes());
        let config = json!({ "auths": { self.addr.as_str(): { "auth": auth } } });
        fs::write(folder.join("config.json"), config.to_string())?;
        Ok(folder)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// RFC 4648 §4.
fn base64(data: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for group in data.chunks(3) {
        let bits = group
            .iter()
            .fold(0u32, |bits, byte| bits << 8 | u32::from(*byte))
            << (8 * (3 - group.len()));
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            out.push(if digit <= group.len() {
                DIGITS[value].into()
            } else {
                '='
            });
        }
    }
    out
}

/// A layer: an uncompressed tar archive and the digest of its bytes.
pub struct Layer {
    path: PathBuf,
    digest: String,
}

impl Layer {
    /// Packs a folder.
    pub fn pack(folder: &Path, to: &Path) -> Result<Self> {
        let words = ["--numeric-owner", "--sort=name", "--mtime=@0", "-C"];
        let packed = Command::new("tar")
            .args(words)
            .arg(folder)
            .arg("-cf")
            .arg(to)
            .arg(".")
            .output()?;
        text(&packed)?;
        let summed = text(&Command::new("sha256sum").arg(to).output()?)?;
        let digest = summed.split(' ').next().context("no sum")?.to_owned();
        Ok(Self {
            path: to.to_owned(),
            digest,
        })
    }
}

impl Layer {
    /// Packs a folder with gzip, as registries have layers; the digest is that of the archive inside.
    pub fn pack_gzip(folder: &Path, to: &Path) -> Result<Self> {
        let plain = to.with_extension("plain");
        let layer = Self::pack(folder, &plain)?;
        let packed = Command::new("gzip")
            .args(["-6", "-n", "-c"])
            .arg(&plain)
            .stdout(fs::File::create(to)?)
            .output()?;
        text(&packed)?;
        fs::remove_file(&plain)?;
        Ok(Self {
            path: to.to_owned(),
            digest: layer.digest,
        })
    }
}

/// One image of an archive.
pub struct Image<'a> {
    /// `registry/name:tag`.
    pub name: String,
    /// Lowest first.
    pub layers: Vec<&'a Layer>,
    /// Entry point.
    pub entrypoint: &'a [&'a str],
}

/// Writes an archive as `docker save` would.
pub fn save(images: &[Image<'_>], folder: &Path, to: &Path) -> Result<()> {
    let pack = folder.join("archive");
    fs::create_dir_all(&pack)?;
    let mut manifest = Vec::new();
    for (number, image) in images.iter().enumerate() {
        let diff_ids: Vec<_> = image
            .layers
            .iter()
            .map(|layer| format!("sha256:{}", layer.digest))
            .collect();
        let config = json!({
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            "os": "linux",
            "created": "2020-01-01T00:00:00Z",
            "config": {
                "Entrypoint": image.entrypoint,
                "Cmd": if image.entrypoint.is_empty() { json!(["sh"]) } else { json!(null) },
                "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
            "history": diff_ids.iter().map(|id| json!({ "created_by": format!("add {id}") })).collect::<Vec<_>>(),
        });
        let config_name = format!("config{number}.json");
        fs::write(pack.join(&config_name), config.to_string())?;
        let mut layers = Vec::new();
        for layer in &image.layers {
            let name = format!("{}.tar", layer.digest);
            if !pack.join(&name).exists() {
                fs::hard_link(&layer.path, pack.join(&name))
                    .or_else(|_| fs::copy(&layer.path, pack.join(&name)).map(drop))?;
            }
            layers.push(name);
        }
        manifest.push(json!({ "Config": config_name, "RepoTags": [image.name], "Layers": layers }));
    }
    fs::write(pack.join("manifest.json"), json!(manifest).to_string())?;
    let packed = Command::new("tar")
        .arg("-C")
        .arg(&pack)
        .arg("-cf")
        .arg(to)
        .arg(".")
        .output()?;
    text(&packed).map(drop)
}

/// An archive, as `docker save` writes it, of the image `busybox:test`: Debian's static busybox under all its names.
pub fn busybox(folder: &Path) -> Result<PathBuf> {
    let root = folder.join("busybox");
    for sub in [
        "bin", "dev", "etc", "proc", "root", "srv", "sys", "tmp", "var",
    ] {
        fs::create_dir_all(root.join(sub))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("busybox-static is not installed")?;
    fs::copy(program, root.join("bin/busybox"))?;
    for name in text(&Command::new(program).arg("--list").output()?)?.lines() {
        if name != "busybox" {
            symlink("busybox", root.join("bin").join(name))?;
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    )?;
    fs::write(root.join("etc/group"), "root:x:0:\nnogroup:x:65534:\n")?;
    let layer = Layer::pack(&root, &folder.join("busybox-layer.tar"))?;
    let archive = folder.join("busybox.tar");
    let image = Image {
        name: "busybox:test".to_owned(),
        layers: vec![&layer],
        entrypoint: &[],
    };
    save(&[image], folder, &archive)?;
    Ok(archive)
}

/// A Debian root file system with these packages, without what a container never reads.
pub fn debian(packages: &str, to: &Path) -> Result<()> {
    let release = fs::read_to_string("/etc/os-release")?;
    let suite = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("bookworm");
    let made = Command::new("debootstrap")
        .args(["--variant=minbase", &format!("--include={packages}"), suite])
        .arg(to)
        .stdin(Stdio::null())
        .output()
        .context("debootstrap is not installed")?;
    if !made.status.success() {
        let log = String::from_utf8_lossy(&made.stdout).into_owned();
        let lines: Vec<_> = log.lines().collect();
        bail!(
            "debootstrap failed:\n{}",
            lines[lines.len().saturating_sub(10)..].join("\n")
        );
    }
    for waste in [
        "usr/share/doc",
        "usr/share/locale",
        "usr/share/man",
        "var/cache/apt",
        "var/lib/apt/lists",
    ] {
        let path = to.join(waste);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
    }
    Ok(())
}
