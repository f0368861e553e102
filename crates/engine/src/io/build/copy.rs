//! `COPY` and `ADD`.

use std::{
    ffi::OsStr,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    rc::Rc,
};

use nix::fcntl::OFlag;
use nix::sys::stat::FileStat;
use sha2::{Digest as _, Sha256};

use super::{
    BuildError,
    tree::{self, Kind, Tree, copy_node, hash_node},
};
use crate::{
    core::{
        build::{CopySpec, Destination},
        images::Digest,
        user,
    },
    io::images::{self, rootdir::RootDir},
};

/// A source that was found.
pub(super) struct Picked {
    /// In its tree; for a directory the one whose content is copied.
    path: PathBuf,
    /// The name of the copy, if the target is a directory.
    name: String,
    kind: Kind,
    stat: FileStat,
    /// An archive of `ADD`, unpacked instead of copied.
    is_archive: bool,
}

/// Sources with what they hold, ready to be copied.
pub(super) struct Copying<'a> {
    spec: &'a CopySpec,
    tree: &'a Tree,
    picked: Vec<Picked>,
    /// Copies keep their owners, as those from other images do unless `--chown` says otherwise.
    keeps_owner: bool,
}

impl<'a> Copying<'a> {
    /// Finds the sources in a tree.
    pub(super) fn find(spec: &'a CopySpec, tree: &'a Tree) -> Result<Self, BuildError> {
        let mut picked = Vec::new();
        for source in &spec.sources {
            let cleaned = crate::core::build::destination("", source).path;
            let relative = cleaned.trim_start_matches('/');
            let paths = if relative.contains(['*', '?', '[', '\\']) {
                let failed = |error| failed(spec, relative, error);
                tree.matching(relative).map_err(failed)?
            } else {
                vec![PathBuf::from(relative)]
            };
            for path in paths {
                picked.push(pick(spec, tree, path)?);
            }
        }
        if picked.is_empty() {
            return Err(refused(spec, "no source files were specified"));
        }
        let several = picked.len() > 1 || spec.sources.len() > 1;
        let target_is_directory =
            spec.target.ends_with('/') || matches!(spec.target.as_str(), "." | "..");
        if several && !target_is_directory {
            return Err(BuildError::Invalid(format!(
                "When using {} with more than one source file, the destination must be a directory and end with a /",
                keyword(spec)
            )));
        }
        Ok(Self {
            keeps_owner: spec.from.is_some() && spec.chown.is_none(),
            spec,
            tree,
            picked,
        })
    }

    /// A hash of all that will be copied: equal sources give equal hashes. With docker's word for what it is of.
    pub(super) fn hash(&self) -> Result<String, BuildError> {
        let mut hash = Sha256::new();
        for picked in &self.picked {
            let failed = |error| failed(self.spec, &picked.path.to_string_lossy(), error);
            if picked.kind != Kind::Directory {
                let mut file = self.tree.read(&picked.path).map_err(failed)?;
                let mut content = Sha256::new();
                io::copy(&mut file, &mut content).map_err(failed)?;
                hash.update(picked.name.as_bytes());
                hash.update(picked.stat.st_mode.to_le_bytes());
                hash.update(content.finalize());
                continue;
            }
            for node in self.tree.below(&picked.path).map_err(failed)? {
                let place = self.tree.place(&picked.path, &node.path).map_err(failed)?;
                hash_node(
                    &mut hash,
                    (&place.0, &place.1),
                    &node.path,
                    self.keeps_owner,
                )
                .map_err(failed)?;
            }
        }
        let kind = match self.picked.as_slice() {
            [one] if one.kind == Kind::Directory => "dir",
            [_] => "file",
            _ => "multi",
        };
        Ok(format!("{kind}:{}", Digest::from_hash(hash).hex()))
    }

    /// Copies everything into the root file system `root`.
    pub(super) fn run(&self, root: &OwnedFd, target: &Destination) -> Result<(), BuildError> {
        let owner = self.owner(root)?;
        let mode = self.mode()?;
        let mut into = Target {
            dirs: RootDir::of(root.try_clone().map_err(BuildError::io("open the image"))?),
            root,
            owner,
            mode,
        };
        for picked in &self.picked {
            self.one(&mut into, picked, target)
                .map_err(|error| failed(self.spec, &picked.path.to_string_lossy(), error))?;
        }
        Ok(())
    }

    fn one(&self, into: &mut Target<'_>, picked: &Picked, target: &Destination) -> io::Result<()> {
        let path = Path::new(target.path.trim_start_matches('/')).to_owned();
        if picked.kind == Kind::Directory {
            into.directory(&path)?;
            for node in self.tree.below(&picked.path)? {
                let place = self.tree.place(&picked.path, &node.path)?;
                into.copy((&place.0, &place.1), &path.join(&node.path), node.kind)?;
            }
            return Ok(());
        }
        if picked.is_archive {
            let directory = into.directory(&path)?;
            let file = self.tree.read(&picked.path)?;
            images::extract(file, &directory).map_err(io::Error::from)?;
            into.dirs.forget();
            return Ok(());
        }
        let path = match target.is_directory || into.is_directory(&path)? {
            true => path.join(&picked.name),
            false => tree::resolve(into.root, &path)?,
        };
        // The file itself, wherever links led to.
        let fd = self.tree.open(&picked.path, OFlag::O_PATH)?;
        into.file(&fd, &picked.stat, &path)
    }

    fn owner(&self, root: &OwnedFd) -> Result<Option<(u32, u32)>, BuildError> {
        let Some(chown) = self.spec.chown.as_deref().filter(|chown| !chown.is_empty()) else {
            return Ok((!self.keeps_owner).then_some((0, 0)));
        };
        let clone = root.try_clone().map_err(BuildError::io("open the image"))?;
        let image = Tree::new(clone, Default::default());
        let read = |path| {
            image
                .account_file(path)
                .map_err(BuildError::io("read the image's accounts"))
        };
        // Without a group the user's name is the group's, too.
        let both = match chown.contains(':') {
            true => chown.to_owned(),
            false => format!("{chown}:{chown}"),
        };
        let found = user::resolve(&both, &[], &read("etc/passwd")?, &read("etc/group")?);
        let found = found.map_err(|error| {
            BuildError::Invalid(format!(
                "unable to convert uid/gid chown string to host mapping: {error}"
            ))
        })?;
        Ok(Some((found.uid, found.gid)))
    }

    fn mode(&self) -> Result<Option<u32>, BuildError> {
        let Some(chmod) = self.spec.chmod.as_deref() else {
            return Ok(None);
        };
        let mode = u32::from_str_radix(chmod, 8)
            .ok()
            .filter(|mode| *mode <= 0o7777);
        mode.map(Some).ok_or_else(|| {
            BuildError::Invalid(format!(
                "invalid chmod parameter: '{chmod}'. it should be octal string and between 0 and 07777"
            ))
        })
    }
}

fn pick(spec: &CopySpec, tree: &Tree, path: PathBuf) -> Result<Picked, BuildError> {
    let shown = path.to_string_lossy().into_owned();
    let found = tree
        .find(&path)
        .map_err(|error| failed(spec, &shown, error))?;
    let Some((kind, stat)) = found else {
        return Err(refused(
            spec,
            &match &spec.from {
                Some(_) => format!("stat {shown}: file does not exist"),
                None => format!(
                    "file not found in build context or excluded by .dockerignore: stat {shown}: file does not exist"
                ),
            },
        ));
    };
    if kind == Kind::Other {
        return Err(refused(spec, &format!("{shown}: not a file or directory")));
    }
    let is_archive = spec.is_add
        && kind == Kind::File
        && is_archive(tree, &path).map_err(|error| failed(spec, &shown, error))?;
    let name = path.file_name().unwrap_or_default();
    Ok(Picked {
        name: name.to_string_lossy().into_owned(),
        path,
        kind,
        stat,
        is_archive,
    })
}

/// Whether a file is a tar archive, packed or not, by its content.
fn is_archive(tree: &Tree, path: &Path) -> io::Result<bool> {
    let mut start = tree.read(path)?;
    Ok(images::is_tar(&mut start as &mut dyn Read))
}

fn keyword(spec: &CopySpec) -> &'static str {
    if spec.is_add { "ADD" } else { "COPY" }
}

fn refused(spec: &CopySpec, why: &str) -> BuildError {
    BuildError::Invalid(format!("{} failed: {why}", keyword(spec)))
}

fn failed(spec: &CopySpec, path: &str, error: io::Error) -> BuildError {
    match error.downcast::<images::ImageError>() {
        Ok(error) => refused(spec, &format!("{path}: {}", error.report())),
        Err(error) => BuildError::Io {
            action: format!("{} {path}", keyword(spec).to_lowercase()),
            source: error,
        },
    }
}

/// The root file system that gets the copies.
struct Target<'a> {
    dirs: RootDir,
    root: &'a OwnedFd,
    owner: Option<(u32, u32)>,
    mode: Option<u32>,
}

impl Target<'_> {
    /// The directory at `path`. Those made on the way belong to the owner of the copies.
    fn directory(&mut self, path: &Path) -> io::Result<Rc<OwnedFd>> {
        match self.dirs.existing(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            found => return found,
        }
        // A link on the way may lead to what does not exist yet.
        let path = &tree::resolve(self.root, path)?;
        let mut missing = Vec::new();
        for above in path.ancestors() {
            match self.dirs.existing(above) {
                Ok(_) => break,
                Err(error) if error.kind() == io::ErrorKind::NotFound => missing.push(above),
                Err(error) => return Err(error),
            }
        }
        for made in missing.into_iter().rev() {
            let fd = self.dirs.directory(made)?;
            let (uid, gid) = self.owner.unwrap_or((0, 0));
            images::rootdir::set_owner(&fd, OsStr::new("."), uid, gid)?;
        }
        self.dirs.directory(path)
    }

    fn is_directory(&self, path: &Path) -> io::Result<bool> {
        match tree::open_in(self.root, path, OFlag::O_PATH | OFlag::O_DIRECTORY) {
            Ok(_) => Ok(true),
            Err(error) if tree::is_absent(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Copies a node of a directory, in place of whatever else has its name.
    fn copy(&mut self, from: (&OwnedFd, &OsStr), path: &Path, kind: Kind) -> io::Result<()> {
        let (parent, name) = self.free(path, kind == Kind::Directory)?;
        copy_node(from, (&parent, name), self.owner, self.mode)
    }

    /// Copies a file that links may have led to.
    fn file(&mut self, from: &OwnedFd, stat: &FileStat, path: &Path) -> io::Result<()> {
        if self.is_directory(path)? {
            return Err(io::Error::other(format!(
                "cannot copy to {}: it is a directory",
                path.display()
            )));
        }
        let (parent, name) = self.free(path, false)?;
        let mut source = std::fs::File::open(tree::proc_path(from))?;
        let mut target = images::rootdir::create_file(&parent, name)?;
        io::copy(&mut source, &mut target)?;
        let (uid, gid) = self.owner.unwrap_or((stat.st_uid, stat.st_gid));
        images::rootdir::set_owner(&parent, name, uid, gid)?;
        let mode = self.mode.unwrap_or(stat.st_mode & 0o7777);
        images::rootdir::set_mode(&parent, name, mode)?;
        let nanos = u32::try_from(stat.st_mtime_nsec).unwrap_or(0);
        images::rootdir::set_time(&parent, name, (stat.st_mtime, nanos))
    }

    /// Makes the place of a copy free; a directory stays where a directory is to come.
    fn free<'p>(
        &mut self,
        path: &'p Path,
        is_directory: bool,
    ) -> io::Result<(Rc<OwnedFd>, &'p OsStr)> {
        let name = path
            .file_name()
            .ok_or_else(|| io::Error::other("the root directory is in the way"))?;
        let parent = self.directory(path.parent().unwrap_or_else(|| Path::new("")))?;
        let there = tree::open_in(&parent, Path::new(name), OFlag::O_PATH | OFlag::O_NOFOLLOW);
        match there {
            Err(error) if tree::is_absent(&error) => {}
            Err(error) => return Err(error),
            Ok(fd) => {
                let found = tree::kind_of(&nix::sys::stat::fstat(&fd)?);
                if !(is_directory && found == Kind::Directory) {
                    images::rootdir::remove_in_place(&parent, name)?;
                    self.dirs.forget();
                }
            }
        }
        Ok((parent, name))
    }
}
