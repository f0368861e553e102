//! What a container has changed in its files.
#![allow(unsafe_code)]

use std::collections::BTreeSet;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::{FileStat, fstat};
use shoal_api::container::ChangeKind;

use super::FilesError;
use super::pack::names;
use super::view::{Tree, look};

/// Compares the writable layer with the image's (lowest first), as docker does: a changed file makes its directories
/// changed too. Sorted by path. `ours` are mount points that the engine made, of which nobody wants to hear.
pub(in crate::io) fn changes(
    upper: &Path,
    layers: &[PathBuf],
    ours: &[&str],
) -> Result<Vec<(PathBuf, ChangeKind)>, FilesError> {
    // A container that was never started has no writable layer yet.
    let upper = match Tree::open(upper) {
        Ok(tree) => tree,
        Err(FilesError::Kernel {
            errno: Errno::ENOENT,
            ..
        }) => return Ok(Vec::new()),
        Err(err) => return Err(err),
    };
    let lower = layers
        .iter()
        .rev()
        .map(|layer| Tree::open(layer))
        .collect::<Result<Vec<_>, _>>()?;
    let mut found = Vec::new();
    // Directories that have another time alone, and those that we made something in.
    let (mut touched, mut entered) = (BTreeSet::new(), BTreeSet::new());
    let mut todo = vec![(PathBuf::new(), true)];
    while let Some((path, mut shows_image)) = todo.pop() {
        let fail = FilesError::at;
        let dir = match upper.inner(&path) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => continue,
            Err(errno) => return Err(fail(path.display().to_string())(errno)),
        };
        // Nothing of the image shines through: all that is in there was added.
        shows_image = shows_image && !is_opaque(&dir);
        for name in names(&upper, &path).map_err(fail(path.display().to_string()))? {
            let Ok((_, stat)) = look(&dir, &name) else {
                continue;
            };
            let child = path.join(OsStr::from_bytes(name.to_bytes()));
            let full = Path::new("/").join(&child);
            let below = if shows_image {
                in_image(&lower, &child)
            } else {
                None
            };
            let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
            let whiteout = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0;
            let kind = match (&below, whiteout) {
                (_, true) => Some(ChangeKind::Deleted),
                (None, false) => Some(ChangeKind::Added),
                // A directory that was only walked through on the way to a changed file becomes changed below.
                (Some(old), false) if is_dir && same_directory(old, &stat) => None,
                (Some(_), false) => Some(ChangeKind::Modified),
            };
            let made_by_us = kind == Some(ChangeKind::Added)
                && ours.iter().any(|ours| full == Path::new(ours))
                && (is_dir || stat.st_size == 0);
            if made_by_us {
                entered.extend(full.parent().map(Path::to_owned));
            }
            if kind == Some(ChangeKind::Modified)
                && is_dir
                && below.as_ref().is_some_and(|old| same_but_time(old, &stat))
            {
                touched.insert(full.clone());
            }
            if let Some(kind) = kind
                && !made_by_us
            {
                found.push((full, kind));
            }
            if is_dir {
                todo.push((child, shows_image && below.is_some()));
            }
        }
    }
    for dir in touched.intersection(&entered) {
        let below = |(path, _): &(PathBuf, ChangeKind)| path != dir && path.starts_with(dir);
        if !found.iter().any(below) {
            found.retain(|(path, _)| path != dir);
        }
    }
    mark_parents(&mut found);
    Ok(found)
}

/// Directories above a change are changed too.
fn mark_parents(found: &mut Vec<(PathBuf, ChangeKind)>) {
    let known: BTreeSet<PathBuf> = found.iter().map(|(path, _)| path.clone()).collect();
    let above: BTreeSet<PathBuf> = known
        .iter()
        .flat_map(|path| path.ancestors().skip(1))
        .filter(|path| *path != Path::new("/") && !known.contains(*path))
        .map(Path::to_owned)
        .collect();
    found.extend(above.into_iter().map(|path| (path, ChangeKind::Modified)));
    found.sort_by(|a, b| a.0.cmp(&b.0));
}

fn same_but_time(old: &FileStat, new: &FileStat) -> bool {
    (old.st_mode, old.st_uid, old.st_gid) == (new.st_mode, new.st_uid, new.st_gid)
}

fn same_directory(old: &FileStat, new: &FileStat) -> bool {
    (old.st_mode, old.st_uid, old.st_gid, old.st_mtime)
        == (new.st_mode, new.st_uid, new.st_gid, new.st_mtime)
}

/// What the image has at a path, if anything; `lower` is highest first.
fn in_image(lower: &[Tree], path: &Path) -> Option<FileStat> {
    let parent = path.parent().unwrap_or_else(|| Path::new(""));
    let name = CString::new(path.file_name()?.as_bytes()).ok()?;
    for layer in lower {
        // Whether an upper layer of the image hides what the others have here.
        let mut hidden = false;
        for above in parent.ancestors() {
            match layer.inner(above) {
                Ok(dir) => hidden |= is_opaque(&dir),
                Err(Errno::ENOTDIR | Errno::ELOOP) => hidden = true,
                Err(_) => {}
            }
        }
        if let Ok((fd, stat)) = layer.inner(parent).and_then(|dir| look(&dir, &name)) {
            let _ = fstat(&fd);
            let whiteout = stat.st_mode & libc::S_IFMT == libc::S_IFCHR && stat.st_rdev == 0;
            return (!whiteout).then_some(stat);
        }
        if hidden {
            return None;
        }
    }
    None
}

fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0_u8; 4];
    // SAFETY: the name ends in NUL, and the kernel writes at most as many bytes as the buffer has.
    let size = unsafe {
        libc::fgetxattr(
            dir.as_raw_fd(),
            c"trusted.overlay.opaque".as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    size == 1 && value[0] == b'y'
}
