//! Images that are made here, and those that travel.

use shoal_api::{
    build::{BuildEvent, BuildOptions, CommitOptions, ImportOptions},
    container::EventKind,
    image::{ImageSummary, Platform, RegistryAuth},
};
use shoal_docker_api::{
    ApiError,
    backend::{ApiResult, ByteStream, ItemStream, Progress, PruneFilter, Pruned},
};
use shoal_engine::io::{build::BuildError, images::LoadedImage};

use super::{EngineApi, errors, platform_text, transfers};

impl EngineApi {
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
        let all = filter.all;
        let which = move |image: &ImageSummary| filter.takes(image.created, &image.labels);
        let users = self.image_users().await?;
        let pruned = self.images().prune_builds(all, which, users).await;
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
            let pulled = images.pull(&reference, platform.as_deref(), auth.as_ref(), reports);
            let pulled = pulled.await.map_err(errors::image)?;
            let attributes = [("name".to_owned(), pulled.name.clone())].into();
            engine.publish(EventKind::Image, "pull", &pulled.name, attributes);
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
            let pushed = images.push(&reference, auth.as_ref(), reports);
            pushed.await.map_err(errors::image)?;
            let attributes = [("name".to_owned(), reference.clone())].into();
            engine.publish(EventKind::Image, "push", &reference, attributes);
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
