//! One stage of a build, from its `FROM` to its last instruction.

use std::{path::PathBuf, sync::Arc};

use shoal_api::{
    build::BuildEvent,
    image::{ImageId, Platform},
};
use tokio::sync::mpsc;

use super::{
    BuildError, Builder, blocking,
    context::{fetch, name_in_url},
    copy::Copying,
    tree::{Tree, mount_root, resolve},
};
use crate::{
    core::{
        build::{
            BuildState, Change, CopySpec, Instruction, Stage, Step, destination, parse_trigger,
            substitute,
        },
        images::{Digest, ImageSpec, parse_platform},
    },
    io::images::{
        Added, ImageErrorKind, NewImage, Reference, Workspace,
        rootdir::{self, RootDir},
    },
};

/// What a stage made, for those that follow.
pub(super) struct StageResult {
    name: Option<String>,
    /// `None` after `FROM scratch` and nothing else.
    pub image: Option<ImageId>,
}

/// A stage under way.
pub(super) struct Current {
    pub(super) image: Option<ImageId>,
    pub(super) state: BuildState,
    platform: Option<Platform>,
    /// Images of `--cache-from` that may have gone the same way so far.
    cache_from: Vec<ImageSpecOf>,
}

struct ImageSpecOf {
    id: ImageId,
    spec: ImageSpec,
}

impl Builder {
    pub(super) async fn stage(&mut self, stage: &Stage) -> Result<(), BuildError> {
        let names = || self.stages.iter().filter_map(|stage| stage.name.as_ref());
        if let Some(name) = &stage.name
            && names().any(|known| known == name)
        {
            return Err(BuildError::Invalid(format!(
                "duplicate name for build stage: {name:?}"
            )));
        }
        self.announce(&stage.source).await;
        self.args.begin_stage();
        let platform = self.platform(stage)?;
        let image = self.base(stage, platform.as_ref()).await?;
        let (state, triggers) = match &image {
            Some(id) => {
                let spec = self.spec(id)?;
                BuildState::on(spec.config, spec.author)
            }
            None => (BuildState::scratch(), Vec::new()),
        };
        let mut current = Current {
            image,
            state,
            platform,
            cache_from: self.cache_sources(),
        };
        self.say_image(&current).await;
        if !triggers.is_empty() {
            let plural = if triggers.len() > 1 { "s" } else { "" };
            let count = triggers.len();
            self.log
                .say(format!("# Executing {count} build trigger{plural}\n"))
                .await;
        }
        for trigger in triggers {
            let step = parse_trigger(&trigger)?;
            self.step(&mut current, &step).await?;
        }
        for step in &stage.steps {
            self.announce(&step.source).await;
            self.step(&mut current, step).await?;
            self.say_image(&current).await;
        }
        if let Some(id) = &current.image {
            self.log.tell(BuildEvent::Image(id.clone())).await;
        }
        self.stages.push(StageResult {
            name: stage.name.clone(),
            image: current.image,
        });
        Ok(())
    }

    async fn say_image(&self, current: &Current) {
        let id = current.image.as_ref().map_or("", ImageId::short);
        self.log.say(format!(" ---> {id}\n")).await;
    }

    fn platform(&self, stage: &Stage) -> Result<Option<Platform>, BuildError> {
        let Some(text) = &stage.platform else {
            return Ok(self.options.platform.clone());
        };
        let text = self.expand(text)?;
        match parse_platform(&text) {
            Some(platform) => Ok(Some(platform)),
            None => Err(BuildError::Invalid(format!(
                "invalid platform {text:?}: expected os/arch[/variant]"
            ))),
        }
    }

    fn expand(&self, text: &str) -> Result<String, BuildError> {
        substitute(text, &self.args.for_from(), self.escape)
            .map_err(|error| BuildError::Invalid(error.to_string()))
    }

    /// The image that a stage begins with.
    async fn base(
        &self,
        stage: &Stage,
        platform: Option<&Platform>,
    ) -> Result<Option<ImageId>, BuildError> {
        let name = self.expand(&stage.base)?;
        if name.is_empty() {
            return Err(BuildError::Invalid(format!(
                "base name ({}) should not be blank",
                stage.base
            )));
        }
        let lower = name.to_lowercase();
        let earlier = self.stages.iter();
        if let Some(stage) = earlier
            .rev()
            .find(|stage| stage.name.as_ref() == Some(&lower))
        {
            return Ok(stage.image.clone());
        }
        if name == "scratch" {
            return Ok(None);
        }
        self.image(&name, platform).await.map(Some)
    }

    /// An image of this host, brought from its registry if need be.
    async fn image(&self, name: &str, platform: Option<&Platform>) -> Result<ImageId, BuildError> {
        let images = self.engine.images();
        if !self.options.pull {
            match images.resolve(name) {
                Ok(image) if fits(&image.platform, platform) => return Ok(image.id),
                Err(error) if error.kind() != ImageErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        let reference: Reference = name.parse().map_err(|_| {
            BuildError::Invalid(format!(
                "failed to parse stage name {name:?}: invalid reference format"
            ))
        })?;
        let auths = &self.options.auths;
        let auth = match reference.domain() {
            "docker.io" => auths
                .get("https://index.docker.io/v1/")
                .or_else(|| auths.get("docker.io")),
            domain => auths
                .get(domain)
                .or_else(|| auths.get(&format!("https://{domain}"))),
        };
        let platform = platform.map(|platform| {
            let mut text = format!("{}/{}", platform.os, platform.architecture);
            if !platform.variant.is_empty() {
                text = format!("{text}/{}", platform.variant);
            }
            text
        });
        let (reports, mut progress) = mpsc::channel(16);
        let pull = images.pull(name, platform.as_deref(), auth, reports);
        let tell = async {
            while let Some(report) = progress.recv().await {
                self.log.tell(BuildEvent::Pull(report)).await;
            }
        };
        let (pulled, ()) = tokio::join!(pull, tell);
        Ok(pulled?.id)
    }

    fn spec(&self, id: &ImageId) -> Result<ImageSpec, BuildError> {
        let spec = self.engine.images().spec(id);
        spec.ok_or_else(|| BuildError::Invalid(format!("No such image: {id}")))
    }

    fn cache_sources(&self) -> Vec<ImageSpecOf> {
        let images = self.engine.images();
        // One that is not here is no help, and no error either, as in docker.
        let found = self.options.cache_from.iter().filter_map(|name| {
            let id = images.resolve(name).ok()?.id;
            let spec = images.spec(&id)?;
            Some(ImageSpecOf { id, spec })
        });
        found.collect()
    }

    async fn step(&mut self, current: &mut Current, step: &Step) -> Result<(), BuildError> {
        let change = current
            .state
            .apply(&step.instruction, &mut self.args, self.escape)
            .map_err(BuildError::Invalid)?;
        if current.image.is_none() && matches!(step.instruction, Instruction::Arg(_)) {
            // There is no image yet that could have been told of it.
            return Ok(());
        }
        match change {
            Change::Config(created_by) => {
                if !self.cached(current, &created_by).await? {
                    self.commit(current, created_by, Added::Nothing).await?;
                }
            }
            Change::Run {
                words,
                env,
                created_by,
            } => {
                if !self.cached(current, &created_by).await? {
                    self.run_command(current, words, env, created_by).await?;
                }
            }
            Change::Copy(spec) => self.copy(current, spec).await?,
            Change::Workdir { path, created_by } => {
                if !self.cached(current, &created_by).await? {
                    let layers = self.layers(current.image.as_ref())?;
                    let workspace = Arc::new(self.engine.images().workspace()?);
                    let own = Arc::clone(&workspace);
                    blocking(move || make_directory(&own, &layers, &path)).await?;
                    let upper = Added::Upper(workspace.path().join("upper"));
                    self.commit(current, created_by, upper).await?;
                }
            }
        }
        Ok(())
    }

    /// Stands for the step and all that it depends on.
    fn key(&self, current: &Current, created_by: &str) -> Digest {
        let config = serde_json::to_string(&current.state.config).unwrap_or_default();
        let author = &current.state.author;
        let network = format!("{:?}", self.options.network);
        Digest::of(format!("{created_by}\0{config}\0{author}\0{network}").as_bytes())
    }

    /// Takes the image that an earlier build made by this step, if there is one.
    async fn cached(&self, current: &mut Current, created_by: &str) -> Result<bool, BuildError> {
        if self.options.no_cache {
            return Ok(false);
        }
        let images = self.engine.images();
        let key = self.key(current, created_by);
        let mut found = images.built_before(current.image.as_ref(), &key);
        if found.is_none() {
            found = self.cached_elsewhere(current, created_by).await?;
        }
        let Some(id) = found else {
            return Ok(false);
        };
        current.image = Some(id);
        self.log.say(" ---> Using cache\n").await;
        Ok(true)
    }

    /// Makes the image of the step from what an image of `--cache-from` has at this place of its history.
    async fn cached_elsewhere(
        &self,
        current: &mut Current,
        created_by: &str,
    ) -> Result<Option<ImageId>, BuildError> {
        let (history, diff_ids) = match &current.image {
            Some(id) => {
                let spec = self.spec(id)?;
                (spec.history, spec.diff_ids)
            }
            None => Default::default(),
        };
        let at = history.len();
        let same_way = |other: &ImageSpecOf| {
            let texts = |steps: &[crate::core::images::BuildStep]| -> Vec<(String, bool)> {
                let text = |step: &crate::core::images::BuildStep| {
                    (step.created_by.clone(), step.empty_layer)
                };
                steps.iter().map(text).collect()
            };
            other.spec.history.len() > at
                && other.spec.diff_ids.starts_with(&diff_ids)
                && texts(&other.spec.history[..at]) == texts(&history)
                && other.spec.history[at].created_by == created_by
        };
        let Some(source) = current.cache_from.iter().find(|other| same_way(other)) else {
            return Ok(None);
        };
        let added = match source.spec.history[at].empty_layer {
            true => Added::Nothing,
            false => Added::LayerOf(source.id.clone(), diff_ids.len()),
        };
        let new = self.new_image(current, created_by.to_owned());
        Ok(Some(self.engine.images().commit(new, added).await?))
    }

    fn new_image(&self, current: &Current, created_by: String) -> NewImage {
        NewImage {
            parent: current.image.clone(),
            config: current.state.config.clone(),
            author: current.state.author.clone(),
            step: Some(self.key(current, &created_by)),
            created_by,
            platform: match current.image {
                Some(_) => None,
                None => current.platform.clone(),
            },
            ..NewImage::default()
        }
    }

    pub(super) async fn commit(
        &self,
        current: &mut Current,
        created_by: String,
        added: Added,
    ) -> Result<(), BuildError> {
        let new = self.new_image(current, created_by);
        current.image = Some(self.engine.images().commit(new, added).await?);
        Ok(())
    }

    fn layers(&self, image: Option<&ImageId>) -> Result<Vec<PathBuf>, BuildError> {
        match image {
            Some(id) => Ok(self.engine.images().layer_dirs(id)?),
            None => Ok(Vec::new()),
        }
    }

    async fn copy(&mut self, current: &mut Current, spec: CopySpec) -> Result<(), BuildError> {
        let target = destination(&current.state.config.working_dir, &spec.target);
        let (local, urls): (Vec<String>, Vec<String>) = spec
            .sources
            .iter()
            .cloned()
            .partition(|source| !(spec.is_add && is_url(source)));
        let several = spec.sources.len() > 1;
        let workspace = Arc::new(self.engine.images().workspace()?);
        let mut from = Vec::new();
        if !local.is_empty() {
            let tree = match &spec.from {
                Some(name) => Source::Image(self.from(name, current).await?),
                None => Source::Context,
            };
            from.push((
                tree,
                CopySpec {
                    sources: local,
                    ..spec.clone()
                },
            ));
        }
        for (number, url) in urls.into_iter().enumerate() {
            let name = match name_in_url(&url) {
                Some(name) => name,
                None if target.is_directory => {
                    return Err(BuildError::Invalid(format!(
                        "cannot determine filename for url: {url}"
                    )));
                }
                None => "download".to_owned(),
            };
            let dir = workspace.path().join(format!("url{number}"));
            std::fs::create_dir(&dir).map_err(BuildError::io("make room for a download"))?;
            fetch(&url, &dir, &name).await?;
            let spec = CopySpec {
                // Downloads are never unpacked.
                is_add: false,
                sources: vec![escaped(&name)],
                ..spec.clone()
            };
            from.push((Source::Directory(dir), spec));
        }
        if several && !(spec.target.ends_with('/') || matches!(spec.target.as_str(), "." | "..")) {
            return Err(BuildError::Invalid(format!(
                "When using {} with more than one source file, the destination must be a directory and end with a /",
                if spec.is_add { "ADD" } else { "COPY" }
            )));
        }
        // First what it is, for the cache; then, if nobody did it before, the copies.
        let mut sources = Vec::with_capacity(from.len());
        for (number, (source, spec)) in from.into_iter().enumerate() {
            let room = workspace.path().join(format!("from{number}"));
            let context = Arc::clone(&self.context);
            sources.push((Arc::new((source, spec, room)), context));
        }
        let mut hashes = Vec::new();
        for (source, context) in &sources {
            let (source, context) = (Arc::clone(source), Arc::clone(context));
            let hash = blocking(move || {
                let (source, spec, room) = &*source;
                let opened = source.open(room)?;
                let tree = opened.as_ref().unwrap_or(&context.tree);
                Copying::find(spec, tree)?.hash()
            });
            hashes.push(hash.await?);
        }
        let hash = match hashes.as_slice() {
            [one] => one.clone(),
            several => format!("multi:{}", Digest::of(several.join(" ").as_bytes()).hex()),
        };
        let keyword = if spec.is_add { "ADD" } else { "COPY" };
        let mut flags = String::new();
        if let Some(chown) = spec.chown.as_deref().filter(|chown| !chown.is_empty()) {
            flags.push_str(&format!("--chown={chown} "));
        }
        if let Some(chmod) = &spec.chmod {
            flags.push_str(&format!("--chmod={chmod} "));
        }
        let comment = format!("{keyword} {flags}{hash} in {} ", spec.target);
        // One space less than for other instructions, as docker writes it.
        let created_by = current
            .state
            .comment(&comment)
            .replacen("#(nop)  ", "#(nop) ", 1);
        if self.cached(current, &created_by).await? {
            return Ok(());
        }
        let layers = self.layers(current.image.as_ref())?;
        let room = workspace.path().join("target");
        let own = room.clone();
        blocking(move || {
            std::fs::create_dir(&own).map_err(BuildError::io("make room for a layer"))?;
            let root = mount_root(&own, &layers).map_err(BuildError::io("mount the image"))?;
            for (source, context) in &sources {
                let (source, spec, room) = &**source;
                let opened = source.open(room)?;
                let tree = opened.as_ref().unwrap_or(&context.tree);
                Copying::find(spec, tree)?.run(&root, &target)?;
            }
            Ok(())
        })
        .await?;
        self.commit(current, created_by, Added::Upper(room.join("upper")))
            .await
    }

    /// The layers of what `--from` names: an earlier stage by name or number, or an image.
    async fn from(&self, name: &str, current: &Current) -> Result<Vec<PathBuf>, BuildError> {
        let lower = name.to_lowercase();
        let named = self
            .stages
            .iter()
            .rev()
            .find(|stage| stage.name.as_ref() == Some(&lower));
        let numbered = || name.parse::<usize>().ok();
        let image = match (named, numbered()) {
            (Some(stage), _) => stage.image.clone(),
            (None, Some(number)) => match self.stages.get(number) {
                Some(stage) => stage.image.clone(),
                None => {
                    return Err(BuildError::Invalid(format!(
                        "invalid from flag value {name}: there is no stage of this number before"
                    )));
                }
            },
            (None, None) => {
                let found = self.image(name, current.platform.as_ref()).await;
                Some(found.map_err(|error| {
                    BuildError::Invalid(format!(
                        "invalid from flag value {name}: {}",
                        error.report()
                    ))
                })?)
            }
        };
        self.layers(image.as_ref())
    }
}

/// Where the sources of a copy are.
enum Source {
    Context,
    /// Layers of an image, lowest first.
    Image(Vec<PathBuf>),
    /// A directory of ours.
    Directory(PathBuf),
}

impl Source {
    /// Opens it as a tree; `None` for the context, which is open already. `room` is a directory to be made.
    fn open(&self, room: &std::path::Path) -> Result<Option<Tree>, BuildError> {
        let failed = BuildError::io("open the files to copy");
        let root = match self {
            Self::Context => return Ok(None),
            Self::Directory(dir) => rootdir::open_directory(dir),
            Self::Image(layers) => {
                std::fs::create_dir_all(room).and_then(|()| mount_root(room, layers))
            }
        };
        Ok(Some(Tree::new(root.map_err(failed)?, Default::default())))
    }
}

fn make_directory(workspace: &Workspace, layers: &[PathBuf], path: &str) -> Result<(), BuildError> {
    let root = mount_root(workspace.path(), layers).map_err(BuildError::io("mount the image"))?;
    let path = std::path::Path::new(path.trim_start_matches('/'));
    let make = || -> std::io::Result<()> {
        let path = resolve(&root, path)?;
        RootDir::of(root.try_clone()?).directory(&path).map(drop)
    };
    make().map_err(|source| BuildError::Io {
        action: format!("create the working directory /{}", path.display()),
        source,
    })
}

fn fits(have: &Platform, wanted: Option<&Platform>) -> bool {
    wanted.is_none_or(|wanted| (&wanted.os, &wanted.architecture) == (&have.os, &have.architecture))
}

fn is_url(source: &str) -> bool {
    source.starts_with("http://") || source.starts_with("https://")
}

/// A name as a pattern that matches it alone.
fn escaped(name: &str) -> String {
    let special = |c: char| matches!(c, '*' | '?' | '[' | '\\');
    name.chars()
        .flat_map(|c| special(c).then_some('\\').into_iter().chain([c]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_downloads_are_no_patterns() {
        assert_eq!(escaped("a[1]*"), "a\\[1]\\*");
    }
}
