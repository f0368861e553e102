//! The classic builder: reads a Dockerfile and makes an image of it, step by step.
//!
//! Every `RUN` is an ordinary container in the same sandbox as any other. Contexts and files of images are only ever
//! reached by descriptor and resolved inside their root, so that no link in them leads to the host.

mod context;
mod copy;
mod run;
mod stage;
mod tree;

use std::{collections::BTreeMap, io, sync::Arc};

use shoal_api::{
    build::{BuildEvent, BuildOptions},
    image::ImageId,
};
use tokio::{io::AsyncRead, sync::mpsc};
use tokio_util::io::SyncIoBridge;

use super::{
    engine::{Engine, EngineError},
    images::{ImageError, Reference, Workspace},
};
use crate::core::build::{BuildArgs, Dockerfile, Instruction, ParseError, Step, substitute};
use context::Context;
use stage::StageResult;

/// Why a build failed. Texts of errors that docker has too are docker's.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Parse(#[from] ParseError),
    /// The Dockerfile, the context or an option is at fault.
    #[error("{0}")]
    Invalid(String),
    #[error("The command '{command}' returned a non-zero code: {code}")]
    Command { command: String, code: i32 },
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error("cannot {action}")]
    Io { action: String, source: io::Error },
    #[error("the build was interrupted")]
    Interrupted,
}

impl BuildError {
    /// The exit code of the command that failed, which becomes that of the client; `None` for any other failure.
    pub fn exit_code(&self) -> Option<i32> {
        match self {
            Self::Command { code, .. } => Some(*code),
            _ => None,
        }
    }

    /// Whether the request was wrong, as opposed to this host or a registry.
    pub fn is_users(&self) -> bool {
        use super::{engine::EngineErrorKind, images::ImageErrorKind};
        match self {
            Self::Parse(_) | Self::Invalid(_) => true,
            Self::Engine(error) => error.kind() == EngineErrorKind::Invalid,
            Self::Image(error) => error.kind() == ImageErrorKind::Invalid,
            Self::Command { .. } | Self::Io { .. } | Self::Interrupted => false,
        }
    }

    /// The error with all its causes in one line, for a user.
    pub fn report(&self) -> String {
        match self {
            Self::Engine(error) => error.report(),
            Self::Image(error) => error.report(),
            Self::Io { source, .. } => format!("{self}: {source}"),
            _ => self.to_string(),
        }
    }

    fn io(action: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io {
            action: action.to_owned(),
            source,
        }
    }
}

/// Where a build tells what it does.
#[derive(Clone)]
struct Log {
    events: mpsc::Sender<BuildEvent>,
    quiet: bool,
}

impl Log {
    /// A listener that went away takes the whole build with it, so nobody needs to know here.
    async fn tell(&self, event: BuildEvent) {
        if !self.quiet {
            let _ = self.events.send(event).await;
        }
    }

    async fn say(&self, text: impl Into<String>) {
        self.tell(BuildEvent::Text(text.into())).await;
    }
}

/// A build under way.
struct Builder {
    engine: Engine,
    options: Arc<BuildOptions>,
    log: Log,
    context: Arc<Context>,
    escape: char,
    args: BuildArgs,
    stages: Vec<StageResult>,
    /// The number of the step under way, and how many there are.
    step: usize,
    steps: usize,
}

impl Engine {
    /// Builds an image of a context (a tar archive, packed or not, or the text of a Dockerfile) and names it.
    ///
    /// Dropping the future stops the build and removes the container of its step.
    pub async fn build(
        &self,
        options: BuildOptions,
        context: impl AsyncRead + Send + Unpin + 'static,
        events: mpsc::Sender<BuildEvent>,
    ) -> Result<ImageId, BuildError> {
        let tags = tags(&options.tags)?;
        let _held = self.images().hold();
        let workspace = Arc::new(self.images().workspace()?);
        let context = self.receive(&options, context, &workspace).await?;
        let mut file = Dockerfile::parse(&context.dockerfile)?;
        if !options.target.is_empty() && !file.keep_to_target(&options.target) {
            return Err(BuildError::Invalid(format!(
                "target stage {:?} could not be found",
                options.target
            )));
        }
        add_labels(&mut file, &options.labels);
        let log = Log {
            events: events.clone(),
            quiet: options.quiet,
        };
        for warning in &file.warnings {
            log.say(warning.as_str()).await;
        }
        let mut builder = Builder {
            engine: self.clone(),
            args: BuildArgs::new(&options.args),
            options: Arc::new(options),
            log: log.clone(),
            context: Arc::new(context),
            escape: file.escape,
            stages: Vec::new(),
            step: 0,
            steps: file.steps(),
        };
        let image = builder.run(&file).await?;
        let id = image.ok_or_else(|| {
            BuildError::Invalid("No image was generated. Is your Dockerfile empty?".to_owned())
        })?;
        if builder.options.quiet {
            // The one thing that is told.
            let _ = events.send(BuildEvent::Text(format!("{id}\n"))).await;
        }
        log.say(format!("Successfully built {}\n", id.short()))
            .await;
        for tag in tags {
            let name = tag.familiar();
            self.images().tag(&id.to_string(), &name).await?;
            log.say(format!("Successfully tagged {name}\n")).await;
        }
        Ok(id)
    }

    async fn receive(
        &self,
        options: &BuildOptions,
        sent: impl AsyncRead + Send + Unpin + 'static,
        workspace: &Arc<Workspace>,
    ) -> Result<Context, BuildError> {
        let (workspace, dockerfile) = (Arc::clone(workspace), options.dockerfile.clone());
        if options.remote.is_empty() {
            return blocking(move || {
                context::receive(SyncIoBridge::new(sent), &workspace, &dockerfile)
            })
            .await;
        }
        let fetched = context::fetch_remote(&options.remote, workspace.path()).await?;
        blocking(move || {
            let file =
                std::fs::File::open(&fetched.path).map_err(BuildError::io("open the context"))?;
            context::receive(file, &workspace, &dockerfile)
        })
        .await
    }
}

impl Builder {
    async fn run(&mut self, file: &Dockerfile) -> Result<Option<ImageId>, BuildError> {
        for (source, list) in &file.meta_args {
            self.announce(source).await;
            for (name, default) in list {
                let env = self.args.for_from();
                let expand = |text: &str| {
                    substitute(text, &env, self.escape)
                        .map_err(|error| BuildError::Invalid(error.to_string()))
                };
                let (name, default) = (expand(name)?, default.as_deref().map(expand).transpose()?);
                self.args.declare_meta(&name, default);
            }
        }
        for stage in &file.stages {
            self.stage(stage).await?;
        }
        let unused = self.args.unused();
        if !unused.is_empty() {
            let names = unused.join(" ");
            self.log
                .say(format!(
                    "[Warning] One or more build-args [{names}] were not consumed\n"
                ))
                .await;
        }
        Ok(self.stages.last().and_then(|stage| stage.image.clone()))
    }

    async fn announce(&mut self, source: &str) {
        self.step += 1;
        self.log
            .say(format!("Step {}/{} : {source}", self.step, self.steps))
            .await;
        self.log.say("\n").await;
    }
}

fn tags(wanted: &[String]) -> Result<Vec<Reference>, BuildError> {
    let mut tags: Vec<Reference> = Vec::new();
    for text in wanted.iter().filter(|text| !text.is_empty()) {
        let tag = text
            .parse::<Reference>()
            .map_err(|error| BuildError::Invalid(error.to_string()))?
            .or_latest();
        if tag.digest().is_some() {
            return Err(BuildError::Invalid(
                "build tag cannot contain a digest".to_owned(),
            ));
        }
        if !tags.contains(&tag) {
            tags.push(tag);
        }
    }
    Ok(tags)
}

/// `--label` is one more instruction of the last stage, whose values are taken as they are.
fn add_labels(file: &mut Dockerfile, labels: &BTreeMap<String, String>) {
    let escape = file.escape;
    let literal = |text: &str| text.chars().flat_map(|c| [escape, c]).collect::<String>();
    let Some(stage) = file.stages.last_mut() else {
        return;
    };
    for (name, value) in labels {
        stage.steps.push(Step {
            source: format!("LABEL {name}={value}"),
            instruction: Instruction::Label(vec![(literal(name), literal(value))]),
        });
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => Err(BuildError::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_before_anything_is_done() {
        let tags =
            |list: &[&str]| tags(&list.iter().map(|tag| (*tag).to_owned()).collect::<Vec<_>>());
        assert_eq!(tags(&["a", "a:latest", ""]).unwrap().len(), 1);
        assert!(tags(&["A"]).unwrap_err().is_users());
        let digest = format!("a@sha256:{}", "0".repeat(64));
        assert_eq!(
            tags(&[&digest]).unwrap_err().to_string(),
            "build tag cannot contain a digest"
        );
    }

    #[test]
    fn labels_given_by_flags_are_taken_literally() {
        let mut file = Dockerfile::parse("FROM a").unwrap();
        add_labels(&mut file, &[("k".to_owned(), "$x 'y'\\".to_owned())].into());
        let mut state = crate::core::build::BuildState::scratch();
        let step = &file.stages[0].steps[0];
        state
            .apply(&step.instruction, &mut BuildArgs::default(), '\\')
            .unwrap();
        assert_eq!(state.config.labels["k"], "$x 'y'\\");
    }
}
