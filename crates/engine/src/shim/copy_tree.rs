//! Fills a fresh volume with what the image has at its target.
//!
//! Works on descriptors and never follows a link, although nothing else runs in the root filesystem yet.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FileStat, Mode, SFlag, UtimensatFlags, fstat, fstatat, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};

/// Copies what is in `from` into `to`, with owners, modes and times, and gives `to` itself those of `from`.
pub(super) fn copy_into(from: OwnedFd, to: &OwnedFd) -> Result<(), Errno> {
    let stat = fstat(&from)?;
    let mut dir = Dir::from_fd(from)?;
    let names: Vec<_> = dir
        .iter()
        .map(|entry| entry.map(|entry| entry.file_name().to_owned()))
        .collect::<Result<_, _>>()?;
    for name in names {
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let name = name.as_c_str();
        let child = fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let mode = Mode::from_bits_truncate(child.st_mode & 0o7777);
        match child.st_mode & libc::S_IFMT {
            libc::S_IFDIR => {
                mkdirat(to, name, mode)?;
                let flags =
                    OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let source = openat(&dir, name, flags, Mode::empty())?;
                let target = openat(to, name, flags, Mode::empty())?;
                copy_into(source, &target)?;
            }
            libc::S_IFLNK => {
                let target = readlinkat(&dir, name)?;
                symlinkat(target.as_os_str(), to, name)?;
                own(to, name, &child)?;
            }
            libc::S_IFREG => {
                let flags = OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
                let mut source =
                    File::from(openat(&dir, name, OFlag::O_RDONLY | flags, Mode::empty())?);
                let create = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
                let mut target = File::from(openat(to, name, create | flags, mode)?);
                std::io::copy(&mut source, &mut target)
                    .map_err(|err| err.raw_os_error().map_or(Errno::EIO, Errno::from_raw))?;
                fchown(
                    &target,
                    Some(Uid::from_raw(child.st_uid)),
                    Some(Gid::from_raw(child.st_gid)),
                )?;
                nix::sys::stat::fchmod(&target, mode)?;
            }
            kind => {
                mknodat(
                    to,
                    name,
                    SFlag::from_bits_truncate(kind),
                    mode,
                    child.st_rdev,
                )?;
                own(to, name, &child)?;
            }
        }
        set_times(to, name, &child)?;
    }
    fchown(
        to,
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )?;
    nix::sys::stat::fchmod(to, Mode::from_bits_truncate(stat.st_mode & 0o7777))
}

fn own(to: &OwnedFd, name: &std::ffi::CStr, stat: &FileStat) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
}

fn set_times(to: &impl AsFd, name: &std::ffi::CStr, stat: &FileStat) -> Result<(), Errno> {
    let read = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let written = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(to, name, &read, &written, UtimensatFlags::NoFollowSymlink)
}

/// Whether a directory has no entries.
pub(super) fn is_empty(dir: &OwnedFd) -> Result<bool, Errno> {
    let mut dir = Dir::from_fd(dir.try_clone().map_err(|_| Errno::EMFILE)?)?;
    for entry in dir.iter() {
        if !matches!(entry?.file_name().to_bytes(), b"." | b"..") {
            return Ok(false);
        }
    }
    Ok(true)
}
