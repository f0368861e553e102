//! Images that are made here, and those that travel.

use shoal_api::{
    build::{BuildEvent, BuildOptions, CommitOptions, ImportOptions},
    container::{ContainerSummary, EventKind},
    image::{ImageSummary, ImageUser, Platform, RegistryAuth},
};
use shoal_docker_api::{
    ApiError,
    backend::{ApiResult, ByteStream, ItemStream, Progress, PruneFilter, Pruned},
};
use shoal_engine::{
    core::images::Reference,
    io::{build::BuildError, images::LoadedImage},
};

use super::{EngineApi, errors, platform_text, transfers};

impl EngineApi {
    /// The containers that stand on images.
    pub(super) async fn image_users(&self) -> ApiResult<Vec<ImageUser>> {
        let containers = self.all_containers(false).await?;
        let users = |container: ContainerSummary| {
            // Its own image, and those whose files it mounts.
            let mounted = container
                .mounts
                .iter()
                .filter(|mount| mount.kind == "image");
            let mounted = mounted.map(|mount| mount.name.clone());
            let images: Vec<String> = mounted.chain([container.image_id.clone()]).collect();
            let user = move |image: String| {
                Some(ImageUser {
                    image: image.parse().ok()?,
                    container: container.id.to_string(),
                    running: container.state.status.is_up(),
                })
            };
            images.into_iter().filter_map(user)
        };
        Ok(containers.into_iter().flat_map(users).collect())
    }

    pub(super) async fn build(
        &self,
        options: BuildOptions,
        context: ByteStream,
    ) -> ApiResult<ItemStream<Progress>> {
        let engine = self.engine.clone();
        let show = |event: BuildEvent| match event {
            BuildEvent::Text(text) => Progress::Line(text),
            BuildEvent::Pull(report) => Progress::Status(report),
            BuildEvent::Image(id) => Progress::Built(id.to_string()),
        };
        transfers::with_reports(show, |events| async move {
            let tags = options.tags.clone();
            match engine
                .build(options, transfers::reader(context), events)
                .await
            {
                Ok(id) => {
                    let id = id.to_string();
                    for tag in tags {
                        let attributes = [("name".to_owned(), tag)].into();
                        engine.publish(EventKind::Image, "tag", &id, attributes);
                    }
                    Ok(Vec::new())
                }
                Err(error) => failed(error),
            }
        })
        .await
    }

    pub(super) async fn prune_builds(&self, filter: PruneFilter) -> ApiResult<Pruned> {
        let (all, keep) = (filter.all, filter.keep_bytes);
        let which = move |image: &ImageSummary| filter.takes(image.created, &image.labels);
        let users = self.image_users().await?;
        let pruned = self.images().prune_builds(all, keep, which, users).await;
        let (gone, space_reclaimed) = pruned.map_err(errors::image)?;
        Ok(Pruned {
            deleted: gone.iter().map(ToString::to_string).collect(),
            space_reclaimed,
        })
    }

    pub(super) async fn commit(
        &self,
        container: &str,
        options: CommitOptions,
    ) -> ApiResult<String> {
        let id = self.engine.commit(container, &options).await;
        Ok(id.map_err(errors::engine)?.to_string())
    }

    pub(super) async fn import(
        &self,
        options: ImportOptions,
        archive: ByteStream,
    ) -> ApiResult<ItemStream<Progress>> {
        let engine = self.engine.clone();
        transfers::with_progress(|reports| async move {
            let _reports = reports;
            let id = engine.import(&options, transfers::reader(archive)).await;
            let id = id.map_err(errors::engine)?.to_string();
            let attributes = [("name".to_owned(), options.name.clone())].into();
            engine.publish(EventKind::Image, "import", &id, attributes);
            Ok(vec![Progress::Status(shoal_api::image::PullProgress {
                status: id,
                ..Default::default()
            })])
        })
        .await
    }

    pub(super) async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        platform: Option<Platform>,
    ) -> ApiResult<ItemStream<Progress>> {
        let (engine, reference) = (self.engine.clone(), reference.to_owned());
        let platform = platform.as_ref().map(platform_text);
        transfers::with_progress(|reports| async move {
            let images = engine.images();
            // As docker: a name alone means all images of that name.
            let names = if is_name_alone(&reference) {
                let all = images.tags_of_remote(&reference, auth.as_ref()).await;
                all.map_err(errors::image)?
            } else {
                vec![reference]
            };
            for name in names {
                let reports = reports.clone();
                let pulled = images.pull(&name, platform.as_deref(), auth.as_ref(), reports);
                let pulled = pulled.await.map_err(errors::image)?;
                let attributes = [("name".to_owned(), pulled.name.clone())].into();
                engine.publish(EventKind::Image, "pull", &pulled.name, attributes);
            }
            Ok(Vec::new())
        })
        .await
    }

    pub(super) async fn push(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> ApiResult<ItemStream<Progress>> {
        let (engine, reference) = (self.engine.clone(), reference.to_owned());
        transfers::with_progress(|reports| async move {
            let images = engine.images();
            let mut names = Vec::new();
            if is_name_alone(&reference) {
                let all = images.list().into_iter().flat_map(|image| image.repo_tags);
                let of = |name: &String| {
                    name.rsplit_once(':')
                        .is_some_and(|(name, _)| name == reference)
                };
                names.extend(all.filter(of));
            }
            // Without any the reason is told by whoever looks for it.
            if names.is_empty() {
                names.push(reference);
            }
            for name in names {
                let pushed = images.push(&name, auth.as_ref(), reports.clone());
                pushed.await.map_err(errors::image)?;
                let attributes = [("name".to_owned(), name.clone())].into();
                engine.publish(EventKind::Image, "push", &name, attributes);
            }
            Ok(Vec::new())
        })
        .await
    }

    pub(super) async fn load(&self, archive: ByteStream) -> ApiResult<ItemStream<Progress>> {
        let engine = self.engine.clone();
        transfers::with_progress(|reports| async move {
            let loaded = engine.images().load(transfers::reader(archive), reports);
            let loaded = loaded.await.map_err(errors::image)?;
            let line = |image: &LoadedImage| {
                let (id, attributes) = (image.id.to_string(), Default::default());
                engine.publish(EventKind::Image, "load", &id, attributes);
                Progress::Line(match &image.name {
                    Some(name) => format!("Loaded image: {name}\n"),
                    None => format!("Loaded image ID: {id}\n"),
                })
            };
            Ok(loaded.iter().map(line).collect())
        })
        .await
    }
}

/// Whether this is a name without a tag and without a digest.
fn is_name_alone(reference: &str) -> bool {
    let parsed = reference.parse::<Reference>();
    parsed.is_ok_and(|name| name.tag().is_none() && name.digest().is_none())
}

/// A step that failed ends the log with its exit code, which the client makes its own; other failures are the answer's
/// status if nothing was told before.
fn failed(error: BuildError) -> ApiResult<Vec<Progress>> {
    let message = error.report();
    match (error.exit_code(), error.is_users(), error) {
        (Some(code), ..) => Ok(vec![Progress::Failed { code, message }]),
        (None, true, _) => Err(ApiError::invalid(message)),
        (None, false, BuildError::Image(error)) => Err(errors::image(error)),
        (None, false, BuildError::Engine(error)) => Err(errors::engine(error)),
        (None, false, _) => Err(ApiError::internal(message)),
    }
}
