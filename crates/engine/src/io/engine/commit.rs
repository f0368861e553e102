//! Images made of containers.

use std::path::Path;

use shoal_api::{
    build::{CommitOptions, ImportOptions},
    container::{ContainerId, ContainerSpec},
    image::{ImageConfig, ImageId},
};
use tokio::io::AsyncRead;

use super::{Engine, EngineError};
use crate::core::build::{BuildArgs, BuildState, Change, Instruction, parse_trigger};
use crate::core::images::Reference;
use crate::io::images::{Added, ImageRecord, NewImage, download};

impl Engine {
    /// `docker commit`: an image of a container's files and of what it was told to run.
    pub async fn commit(
        &self,
        name: &str,
        options: &CommitOptions,
    ) -> Result<ImageId, EngineError> {
        let entry = self.find(name)?;
        let record = entry.record();
        let target = name_of(&options.name)?;
        let parent: ImageId = record
            .image_id
            .parse()
            .map_err(|_| EngineError::NoSuchImage(record.image_id.clone()))?;
        let base = self
            .images()
            .spec(&parent)
            .ok_or_else(|| EngineError::NoSuchImage(record.image_id.clone()))?;
        let config = apply_changes(config_of(&record.spec, &base.config), &options.changes)?;
        let held = if options.pause {
            self.hold(&entry).await?
        } else {
            None
        };
        let created_by = record.spec.cmd.clone().unwrap_or_default().join(" ");
        let new = NewImage {
            parent: Some(parent),
            config,
            author: options.author.clone(),
            comment: options.comment.clone(),
            created_by,
            name: target,
            ..NewImage::default()
        };
        let made = self.images().commit(new, self.upper(&entry.dir)).await;
        drop(held);
        let id = made?;
        let attributes = [
            ("comment", options.comment.clone()),
            ("imageID", id.to_string()),
            ("imageRef", options.name.clone()),
        ];
        self.tell(&record, "commit", &attributes);
        Ok(id)
    }

    /// `docker import`: an image of one layer, from an archive that was sent or is fetched.
    pub async fn import(
        &self,
        options: &ImportOptions,
        sent: impl AsyncRead + Send + Unpin + 'static,
    ) -> Result<ImageId, EngineError> {
        let name = name_of(&options.name)?;
        let config = apply_changes(ImageConfig::default(), &options.changes)?;
        let comment = match options.comment.as_str() {
            "" if options.source.is_empty() => "Imported from -".to_owned(),
            "" => format!("Imported from {}", options.source),
            comment => comment.to_owned(),
        };
        let new = NewImage {
            config,
            comment,
            platform: options.platform.clone(),
            name,
            ..NewImage::default()
        };
        let images = self.images();
        if options.source.is_empty() {
            return Ok(images.import(sent, new).await?);
        }
        // A host without a scheme is one that is spoken to by http, as with docker.
        let url = match options.source.contains("://") {
            true => options.source.clone(),
            false => format!("http://{}", options.source),
        };
        if !url.starts_with("http://") && !url.starts_with("https://") {
            return Err(EngineError::Invalid(format!(
                "cannot import from {url:?}: only http and https are supported"
            )));
        }
        let workspace = images.workspace()?;
        let path = workspace.path().join("archive");
        download(&url, &path).await?;
        let archive = tokio::fs::File::open(&path)
            .await
            .map_err(EngineError::io("open", &path))?;
        Ok(images.import(archive, new).await?)
    }

    fn upper(&self, dir: &Path) -> Added {
        let upper = dir.join("upper");
        match upper.exists() {
            true => Added::Upper(upper),
            // It never ran.
            false => Added::Nothing,
        }
    }

    /// What a container that ended has written.
    pub(in crate::io) fn written_by(&self, id: &ContainerId) -> Added {
        self.upper(&self.dir_of(id))
    }

    /// Makes a container of an image that need not have a name.
    pub(in crate::io) async fn create_of(
        &self,
        spec: ContainerSpec,
        image: &ImageRecord,
    ) -> Result<ContainerId, EngineError> {
        self.create_from(spec, image).await
    }
}

/// The name for a new image; empty is none.
fn name_of(text: &str) -> Result<Option<Reference>, EngineError> {
    if text.is_empty() {
        return Ok(None);
    }
    let name = text
        .parse::<Reference>()
        .map_err(|error| EngineError::Invalid(error.to_string()))?
        .or_latest();
    match name.digest() {
        Some(_) => Err(EngineError::Invalid(
            "refusing to create a tag with a digest reference".to_owned(),
        )),
        None => Ok(Some(name)),
    }
}

/// How a container of the new image will run: as this one does.
fn config_of(spec: &ContainerSpec, base: &ImageConfig) -> ImageConfig {
    ImageConfig {
        env: spec.env.clone(),
        entrypoint: spec.entrypoint.clone(),
        cmd: spec.cmd.clone(),
        user: spec.user.clone().unwrap_or_default(),
        working_dir: spec.working_dir.clone().unwrap_or_default(),
        exposed_ports: spec.exposed_ports.iter().map(ToString::to_string).collect(),
        volumes: spec.volumes.clone(),
        labels: spec.labels.clone(),
        stop_signal: spec.stop_signal.clone(),
        healthcheck: spec.healthcheck.clone(),
        shell: base.shell.clone(),
        on_build: base.on_build.clone(),
    }
}

/// `--change` of `commit` and `import`.
fn apply_changes(config: ImageConfig, changes: &[String]) -> Result<ImageConfig, EngineError> {
    let on_build = config.on_build.clone();
    let (mut state, _) = BuildState::on(config, String::new());
    state.config.on_build = on_build;
    let mut args = BuildArgs::default();
    for change in changes.iter().flat_map(|change| change.lines()) {
        if change.trim().is_empty() {
            continue;
        }
        let instruction = match change.trim().split_once(char::is_whitespace) {
            Some((word, rest)) if word.eq_ignore_ascii_case("onbuild") => {
                Instruction::OnBuild(rest.trim().to_owned())
            }
            _ => {
                let step = parse_trigger(change);
                step.map_err(|error| EngineError::Invalid(error.to_string()))?
                    .instruction
            }
        };
        let refused = || {
            let word = change.split_whitespace().next().unwrap_or_default();
            EngineError::Invalid(format!(
                "{} is not a valid change command",
                word.to_uppercase()
            ))
        };
        if matches!(
            instruction,
            Instruction::Run(_)
                | Instruction::Copy(_)
                | Instruction::Arg(_)
                | Instruction::Maintainer(_)
                | Instruction::Shell(_)
        ) {
            return Err(refused());
        }
        match state.apply(&instruction, &mut args, '\\') {
            Ok(Change::Config(_) | Change::Workdir { .. }) => {}
            Ok(_) => return Err(refused()),
            Err(reason) => return Err(EngineError::Invalid(reason)),
        }
    }
    Ok(state.config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_instructions_that_need_no_files() {
        let changes = ["CMD [\"a\"]\nENV X=1", "WORKDIR /w", "ONBUILD RUN b"].map(str::to_owned);
        let config = apply_changes(ImageConfig::default(), &changes).unwrap();
        assert_eq!(
            (config.cmd.unwrap(), config.env),
            (vec!["a".into()], vec!["X=1".into()])
        );
        assert_eq!(
            (config.working_dir.as_str(), config.on_build.len()),
            ("/w", 1)
        );
        let refused = |change: &str| {
            apply_changes(ImageConfig::default(), &[change.to_owned()])
                .unwrap_err()
                .to_string()
        };
        assert_eq!(refused("RUN a"), "RUN is not a valid change command");
        assert!(refused("NONSENSE a").contains("unknown instruction: NONSENSE"));
    }
}
