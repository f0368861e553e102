//! What is mounted into a container: the user's wishes read, checked and put in order.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use shoal_api::container::{ContainerSpec, MountKind, MountPoint, Propagation, ReadOnlyDepth};

/// A wished mount, whatever form it was written in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlannedMount {
    /// Absolute and without `.` or `..`.
    pub target: PathBuf,
    pub read_only: bool,
    pub what: Planned,
    /// The options as written, for `inspect`.
    pub mode: String,
}

/// The kinds of mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    Bind {
        source: PathBuf,
        propagation: Propagation,
        non_recursive: bool,
        create_source: bool,
        read_only_depth: ReadOnlyDepth,
    },
    Volume {
        name: Option<String>,
        no_copy: bool,
        labels: BTreeMap<String, String>,
        /// The part of it that is mounted, instead of all.
        subpath: Option<PathBuf>,
        /// Of its driver, if it has to be made.
        options: BTreeMap<String, String>,
    },
    Tmpfs {
        options: Vec<String>,
    },
    /// The files of an image, by its name; never written to.
    Image {
        source: String,
        subpath: Option<PathBuf>,
    },
}

impl Planned {
    /// As docker names it.
    fn kind(&self) -> &'static str {
        match self {
            Self::Bind { .. } => "bind",
            Self::Volume { .. } => "volume",
            Self::Tmpfs { .. } => "tmpfs",
            Self::Image { .. } => "image",
        }
    }
}

/// A mount with everything decided, for the OCI spec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyMount {
    pub target: PathBuf,
    /// `bind` or `tmpfs`.
    pub kind: &'static str,
    pub source: PathBuf,
    pub options: Vec<String>,
}

/// A wish that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    #[error("invalid volume specification: '{0}'")]
    Specification(String),
    #[error("invalid volume specification: '{spec}': {problem}")]
    InSpecification { spec: String, problem: Box<Self> },
    #[error("invalid mount config for type {kind:?}: {problem}")]
    InConfig {
        kind: &'static str,
        problem: Box<Self>,
    },
    #[error("invalid mode: {0}")]
    Mode(String),
    #[error("invalid mount path: '{0}' mount path must be absolute")]
    Relative(String),
    #[error("invalid specification: destination can't be '/'")]
    Root,
    #[error("{0} is the runtime's own")]
    Reserved(String),
    #[error("Duplicate mount point: {0}")]
    Duplicate(String),
    #[error(
        "create {0}: {0:?} includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are \
         allowed. If you intended to pass a host directory, use absolute path"
    )]
    VolumeName(String),
    #[error(
        "mounts below a read-only one cannot be made read-only by Linux {0}.{1}: that takes 5.12 or later"
    )]
    NotReadOnlyBelow(u32, u32),
    #[error(
        "create {0}: volume name is too short, names should be at least two alphanumeric characters"
    )]
    ShortVolumeName(String),
}

impl MountError {
    /// Says in which kind of mount it is.
    fn of(self, kind: &'static str) -> Self {
        Self::InConfig {
            kind,
            problem: Box::new(self),
        }
    }
}

/// All mounts a container wants, parents before children. Image volumes give way to anything else at their target, and
/// what is `inherited` from other containers to all but them.
pub fn plan(
    spec: &ContainerSpec,
    inherited: &[MountPoint],
) -> Result<Vec<PlannedMount>, MountError> {
    let mut planned: BTreeMap<PathBuf, PlannedMount> = BTreeMap::new();
    let mut insert = |mount: PlannedMount| {
        let target = mount.target.clone();
        match planned.insert(target.clone(), mount) {
            Some(_) => Err(MountError::Duplicate(target.display().to_string())),
            None => Ok(()),
        }
    };
    for bind in &spec.host.binds {
        insert(parse_bind(bind)?)?;
    }
    for mount in &spec.host.mounts {
        let what = match &mount.kind {
            MountKind::Bind {
                source,
                propagation,
                non_recursive,
                create_source,
                read_only_depth,
            } => {
                if !source.starts_with('/') {
                    return Err(MountError::Relative(source.clone()).of("bind"));
                }
                Planned::Bind {
                    source: PathBuf::from(source),
                    propagation: *propagation,
                    non_recursive: *non_recursive,
                    create_source: *create_source,
                    read_only_depth: *read_only_depth,
                }
            }
            MountKind::Volume {
                name,
                no_copy,
                labels,
                subpath,
                driver_opts,
                ..
            } => {
                if let Some(name) = name {
                    check_volume_name(name)?;
                }
                Planned::Volume {
                    name: name.clone(),
                    no_copy: *no_copy,
                    labels: labels.clone(),
                    subpath: subpath
                        .as_ref()
                        .filter(|path| !path.is_empty())
                        .map(PathBuf::from),
                    options: driver_opts.clone(),
                }
            }
            MountKind::Tmpfs { size, mode } => {
                let mut options = tmpfs_options("");
                options.extend(size.map(|size| format!("size={size}")));
                options.extend(mode.map(|mode| format!("mode={mode:o}")));
                Planned::Tmpfs { options }
            }
            MountKind::Image { source, subpath } => Planned::Image {
                source: source.clone(),
                subpath: subpath
                    .as_ref()
                    .filter(|path| !path.is_empty())
                    .map(PathBuf::from),
            },
        };
        let kind = what.kind();
        let target = check_target(&mount.target).map_err(|err| err.of(kind))?;
        insert(PlannedMount {
            target,
            read_only: mount.read_only || matches!(what, Planned::Image { .. }),
            what,
            mode: String::new(),
        })?;
    }
    for (target, options) in &spec.host.tmpfs {
        let what = Planned::Tmpfs {
            options: tmpfs_options(options),
        };
        let read_only = options.split(',').any(|option| option == "ro");
        insert(PlannedMount {
            target: check_target(target).map_err(|err| err.of("tmpfs"))?,
            read_only,
            what,
            mode: options.clone(),
        })?;
    }
    for mount in inherited {
        let target = check_target(&mount.destination)?;
        let what = if mount.kind == "volume" {
            Planned::Volume {
                name: Some(mount.name.clone()),
                no_copy: false,
                labels: BTreeMap::new(),
                subpath: None,
                options: BTreeMap::new(),
            }
        } else {
            Planned::Bind {
                source: mount.source.clone(),
                propagation: Propagation::default(),
                non_recursive: false,
                create_source: false,
                read_only_depth: ReadOnlyDepth::default(),
            }
        };
        planned.entry(target.clone()).or_insert(PlannedMount {
            target,
            read_only: !mount.rw,
            what,
            mode: mount.mode.clone(),
        });
    }
    for target in &spec.volumes {
        let target = check_target(target).map_err(|err| err.of("volume"))?;
        let what = Planned::Volume {
            name: None,
            no_copy: false,
            labels: BTreeMap::new(),
            subpath: None,
            options: BTreeMap::new(),
        };
        planned.entry(target.clone()).or_insert(PlannedMount {
            target,
            read_only: false,
            what,
            mode: String::new(),
        });
    }
    let mut mounts: Vec<PlannedMount> = planned.into_values().collect();
    mounts.sort_by_key(|mount| mount.target.components().count());
    Ok(mounts)
}

fn parse_bind(text: &str) -> Result<PlannedMount, MountError> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, target, mode) = match parts.as_slice() {
        [target] => ("", *target, ""),
        [source, target] => (*source, *target, ""),
        [source, target, mode] => (*source, *target, *mode),
        _ => return Err(MountError::Specification(text.to_owned())),
    };
    if target.is_empty() || (source.is_empty() && parts.len() > 1) {
        return Err(MountError::Specification(text.to_owned()));
    }
    let mut read_only = false;
    let mut no_copy = false;
    let mut propagation = Propagation::default();
    for option in mode.split(',').filter(|option| !option.is_empty()) {
        match option {
            "ro" => read_only = true,
            // SELinux labels and Desktop's consistency hints mean nothing here, as in Docker without them.
            "rw" | "z" | "Z" | "consistent" | "cached" | "delegated" => {}
            "nocopy" => no_copy = true,
            "rprivate" => propagation = Propagation::Rprivate,
            "private" => propagation = Propagation::Private,
            "rslave" => propagation = Propagation::Rslave,
            "slave" => propagation = Propagation::Slave,
            "rshared" => propagation = Propagation::Rshared,
            "shared" => propagation = Propagation::Shared,
            other => {
                return Err(MountError::Mode(other.to_owned()));
            }
        }
    }
    let what = if source.starts_with('/') {
        Planned::Bind {
            source: PathBuf::from(source),
            propagation,
            non_recursive: false,
            create_source: true,
            read_only_depth: ReadOnlyDepth::default(),
        }
    } else if source.is_empty() {
        Planned::Volume {
            name: None,
            no_copy,
            labels: BTreeMap::new(),
            subpath: None,
            options: BTreeMap::new(),
        }
    } else {
        check_volume_name(source)?;
        Planned::Volume {
            name: Some(source.to_owned()),
            no_copy,
            labels: BTreeMap::new(),
            subpath: None,
            options: BTreeMap::new(),
        }
    };
    let target = check_target(target).map_err(|err| MountError::InSpecification {
        spec: text.to_owned(),
        problem: Box::new(err.of(what.kind())),
    })?;
    Ok(PlannedMount {
        target,
        read_only,
        what,
        mode: mode.to_owned(),
    })
}

/// A name that is one harmless component of a path.
pub fn check_volume_name(name: &str) -> Result<(), MountError> {
    let first = name
        .bytes()
        .next()
        .is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if first && name.len() == 1 {
        return Err(MountError::ShortVolumeName(name.to_owned()));
    }
    if first && rest && name.len() <= 255 {
        Ok(())
    } else {
        Err(MountError::VolumeName(name.to_owned()))
    }
}

fn check_target(target: &str) -> Result<PathBuf, MountError> {
    if !target.starts_with('/') {
        return Err(MountError::Relative(target.to_owned()));
    }
    let mut clean = PathBuf::from("/");
    for part in Path::new(target).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean == Path::new("/") {
        return Err(MountError::Root);
    }
    // Mounts over these would undo what the runtime hides there.
    if clean.starts_with("/proc") || clean == Path::new("/sys") || clean == Path::new("/dev") {
        return Err(MountError::Reserved(target.to_owned()));
    }
    Ok(clean)
}

fn tmpfs_options(options: &str) -> Vec<String> {
    let mut all: Vec<String> = ["noexec", "nosuid", "nodev"].map(str::to_owned).to_vec();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        // An explicit wish replaces its opposite among the defaults.
        all.retain(|have| have.strip_prefix("no") != Some(option) && have != option);
        all.push(option.to_owned());
    }
    all
}

/// The OCI options of a bind mount.
pub fn bind_options(read_only: bool, propagation: Propagation, non_recursive: bool) -> Vec<String> {
    let bind = if non_recursive { "bind" } else { "rbind" };
    let access = if read_only { "ro" } else { "rw" };
    [bind, propagation.as_str(), access]
        .map(str::to_owned)
        .to_vec()
}

/// Whether a read-only bind is so with all that is mounted below it.
///
/// The kernel can do that since Linux 5.12 (`mount_setattr(2)` with `AT_RECURSIVE`).
pub fn is_read_only_below(depth: ReadOnlyDepth, kernel: (u32, u32)) -> Result<bool, MountError> {
    let able = kernel >= (5, 12);
    match depth {
        ReadOnlyDepth::Itself => Ok(false),
        ReadOnlyDepth::AsPossible => Ok(able),
        ReadOnlyDepth::All if able => Ok(true),
        ReadOnlyDepth::All => Err(MountError::NotReadOnlyBelow(kernel.0, kernel.1)),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(binds: &[&str], expect: Expect) {
        let mut spec = ContainerSpec::default();
        spec.host.binds = binds.iter().map(|&bind| bind.to_owned()).collect();
        spec.volumes = ["/image".to_owned()].into();
        let text = match plan(&spec, &[]) {
            Ok(mounts) => mounts
                .iter()
                .map(|mount| {
                    let what = match &mount.what {
                        Planned::Bind { source, .. } => format!("bind {}", source.display()),
                        Planned::Volume { name, .. } => {
                            format!("volume {}", name.as_deref().unwrap_or("(anonymous)"))
                        }
                        Planned::Tmpfs { options } => format!("tmpfs {options:?}"),
                        Planned::Image { source, .. } => format!("image {source}"),
                    };
                    let access = if mount.read_only { "ro" } else { "rw" };
                    format!("{} {what} {access}\n", mount.target.display())
                })
                .collect(),
            Err(err) => format!("{err}\n"),
        };
        expect.assert_eq(&text);
    }

    #[test]
    fn parents_come_first_and_image_volumes_give_way() {
        check(
            &["/a:/x/../y/z/:ro", "data:/y:nocopy", "/image"],
            expect![[r#"
                /image volume (anonymous) rw
                /y volume data rw
                /y/z bind /a ro
            "#]],
        );
    }

    #[test]
    fn wrong_wishes_are_named() {
        check(
            &["/a:b"],
            expect![[r#"
                invalid volume specification: '/a:b': invalid mount config for type "bind": invalid mount path: 'b' mount path must be absolute
            "#]],
        );
        check(&["/a:/b:odd"], expect!["invalid mode: odd\n"]);
        check(
            &["/a:/"],
            expect![[r#"
                invalid volume specification: '/a:/': invalid mount config for type "bind": invalid specification: destination can't be '/'
            "#]],
        );
        check(
            &["/a:/b", "/c:/b/."],
            expect!["Duplicate mount point: /b\n"],
        );
        check(
            &["/a:/proc/sys"],
            expect![[r#"
                invalid volume specification: '/a:/proc/sys': invalid mount config for type "bind": /proc/sys is the runtime's own
            "#]],
        );
        check(
            &["../up:/b"],
            expect![[r#"
                create ../up: "../up" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path
            "#]],
        );
    }

    #[test]
    fn read_only_reaches_as_far_as_wished_and_possible() {
        use ReadOnlyDepth as Depth;
        let below = |depth, kernel| is_read_only_below(depth, kernel).ok();
        for (kernel, able) in [
            ((6, 1), true),
            ((5, 12), true),
            ((5, 11), false),
            ((4, 19), false),
        ] {
            assert_eq!(below(Depth::AsPossible, kernel), Some(able), "{kernel:?}");
            assert_eq!(below(Depth::Itself, kernel), Some(false), "{kernel:?}");
            let forced = able.then_some(true);
            assert_eq!(below(Depth::All, kernel), forced, "{kernel:?}");
        }
    }

    #[test]
    fn explicit_tmpfs_options_replace_defaults() {
        assert_eq!(
            tmpfs_options("exec,size=1m"),
            ["nosuid", "nodev", "exec", "size=1m"]
        );
    }
}
