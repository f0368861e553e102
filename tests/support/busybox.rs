//! A small image with a shell, made of the machine's static busybox.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};

use crate::{
    images::{Image, Layer, save},
    lab::{TestLab, text},
};

/// Name of the image.
pub const BUSYBOX: &str = "shoal-busybox:latest";

/// Packs the image into an archive in a folder.
pub fn archive(folder: &Path) -> Result<PathBuf> {
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .into_iter()
        .find(|path| Path::new(path).exists())
        .context("busybox-static is not installed")?;
    let root = folder.join("root");
    for name in ["bin", "etc", "tmp", "run", "proc", "sys", "dev", "share"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(program, root.join("bin/busybox"))?;
    for applet in text(&Command::new(program).arg("--list").output()?)?.lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet))?;
        }
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/:/bin/sh\nuser:x:1000:1000::/:/bin/sh\n",
    )?;
    fs::write(
        root.join("etc/group"),
        "root:x:0:\nuser:x:1000:\nextra:x:2000:\n",
    )?;
    // Something that a new volume begins with.
    fs::write(root.join("share/greeting"), "hello\n")?;
    let layer = Layer::pack(&root, &folder.join("layer.tar"))?;
    let image = Image {
        name: BUSYBOX.to_owned(),
        layers: vec![&layer],
        entrypoint: &[],
    };
    let to = folder.join("busybox.tar");
    save(&[image], folder, &to)?;
    Ok(to)
}

/// Loads the image on hosts.
pub fn load(lab: &TestLab, hosts: &[&str]) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let archive = archive(folder.path())?;
    let archive = archive.to_string_lossy();
    for host in hosts {
        lab.on(host, &["load", "-q", "-i", &archive])?;
    }
    Ok(())
}
