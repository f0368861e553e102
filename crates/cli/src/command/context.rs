//! `shoal context`: named daemons, in docker's own store.

mod transfer;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use serde_json::{Value, json};

use crate::{
    config_file::ConfigFile,
    connect::{Globals, environment_host},
    context::{self, Context, Store, TLS_FILES},
    flags,
    human::ellipsis,
    output::{self, ListFormat, column, hidden, row},
};

/// Characters of a description or of an error in the table.
const DESCRIPTION_WIDTH: usize = 50;

/// Manage contexts
#[derive(Subcommand)]
pub(crate) enum Command {
    Create(Create),
    Export(transfer::Export),
    Import(transfer::Import),
    Inspect(Inspect),
    /// List contexts
    #[command(visible_alias = "list")]
    Ls(ListFormat),
    #[command(visible_alias = "remove")]
    Rm(Remove),
    /// Print the name of the current context
    Show,
    Update(Update),
    Use(Use),
}

/// Create a context
#[derive(Args)]
#[command(
    after_help = "Examples:\n  shoal context create near --docker host=unix:///run/shoal/shoal.sock\n  shoal context create far --docker host=tcp://far:2376,ca=ca.pem,cert=cert.pem,key=key.pem\n  shoal context create there --docker host=ssh://me@there"
)]
pub(crate) struct Create {
    #[arg(value_name = "CONTEXT")]
    name: String,
    /// Description of the context
    #[arg(
        long,
        value_name = "string",
        default_value = "",
        hide_default_value = true
    )]
    description: String,
    /// Set the endpoint: host=…, ca=…, cert=…, key=…, skip-tls-verify=…
    #[arg(long, value_name = "stringToString")]
    docker: Option<String>,
    /// Create context from a named context
    #[arg(long, value_name = "string", conflicts_with = "docker")]
    from: Option<String>,
}

/// Update a context
#[derive(Args)]
#[command(after_help = "Example:\n  shoal context update far --description 'the far host'")]
pub(crate) struct Update {
    #[arg(value_name = "CONTEXT")]
    name: String,
    /// Description of the context
    #[arg(long, value_name = "string")]
    description: Option<String>,
    /// Set the endpoint: host=…, ca=…, cert=…, key=…, skip-tls-verify=…
    #[arg(long, value_name = "stringToString")]
    docker: Option<String>,
}

/// Display detailed information on one or more contexts
#[derive(Args)]
pub(crate) struct Inspect {
    #[arg(value_name = "CONTEXT")]
    names: Vec<String>,
    /// Format output using a custom template
    #[arg(short, long, value_name = "string")]
    format: Option<String>,
}

/// Remove one or more contexts
#[derive(Args)]
pub(crate) struct Remove {
    #[arg(required = true, value_name = "CONTEXT")]
    names: Vec<String>,
    /// Force the removal of a context in use
    #[arg(short, long)]
    force: bool,
}

/// Set the current context
#[derive(Args)]
pub(crate) struct Use {
    #[arg(value_name = "CONTEXT")]
    name: String,
}

/// An endpoint as `--docker` says it: host, whether to check, and the certificates' paths.
type Endpoint = (Option<String>, bool, [Option<String>; 3]);

fn endpoint(text: &str) -> Result<Endpoint> {
    let (mut host, mut skip, mut files) = (None, false, [None, None, None]);
    for (key, value) in flags::fields(text)? {
        let place = TLS_FILES.iter().position(|(name, _)| *name == key);
        match (key.as_str(), place) {
            (_, Some(place)) => files[place] = value,
            ("host", _) => host = value,
            ("skip-tls-verify", _) => skip = flags::boolean(&key, value.as_deref())?,
            _ => bail!("unrecognized config key: {key}"),
        }
    }
    Ok((host, skip, files))
}

impl Command {
    pub(crate) fn run(self, globals: &Globals) -> Result<()> {
        let store = Store::open();
        match self {
            Self::Create(args) => args.run(&store, globals),
            Self::Export(args) => args.run(&store),
            Self::Import(args) => args.run(&store),
            Self::Inspect(args) => args.run(&store, globals),
            Self::Ls(format) => list(&format, &store, globals),
            Self::Rm(args) => args.run(&store, globals),
            Self::Show => {
                output::line(globals.context_name()?);
                Ok(())
            }
            Self::Update(args) => args.run(&store),
            Self::Use(args) => args.run(&store),
        }
    }
}

impl Create {
    fn run(self, store: &Store, globals: &Globals) -> Result<()> {
        context::check_name(&self.name)?;
        if store.read(&self.name).is_ok() {
            bail!("context {:?} already exists", self.name);
        }
        let mut made = Context {
            name: self.name.clone(),
            description: self.description,
            host: String::new(),
            skip_tls_verify: false,
        };
        let mut files = [None, None, None];
        match (&self.docker, self.from.as_deref()) {
            (Some(text), _) => {
                let (host, skip, given) = endpoint(text)?;
                made.host = host.unwrap_or_default();
                (made.skip_tls_verify, files) = (skip, given);
            }
            (None, None | Some(context::DEFAULT)) => made.host = globals.default_host(),
            (None, Some(from)) => {
                let from = store.read(from)?;
                made.host.clone_from(&from.host);
                made.skip_tls_verify = from.skip_tls_verify;
                let folder = store.tls(&from.name);
                files = TLS_FILES.map(|(_, name)| {
                    let path = folder.join(name);
                    path.exists().then(|| path.display().to_string())
                });
            }
        }
        check_host(&made.host)?;
        store.write(&made, Some(files))?;
        output::line(&self.name);
        output::note(format!("Successfully created context \"{}\"", self.name));
        Ok(())
    }
}

fn check_host(host: &str) -> Result<()> {
    match host.split_once("://") {
        Some(("unix" | "tcp" | "http" | "https", rest)) if !rest.is_empty() => Ok(()),
        Some(("ssh", rest)) => crate::client::check_ssh(rest),
        _ => {
            bail!(
                "unable to parse docker host {host:?}: expected unix:///path, tcp://host:port or ssh://user@host"
            )
        }
    }
}

impl Update {
    fn run(self, store: &Store) -> Result<()> {
        context::check_name(&self.name)?;
        let mut changed = store.read(&self.name)?;
        if let Some(description) = self.description {
            changed.description = description;
        }
        let mut files = None;
        if let Some(text) = &self.docker {
            let (host, skip, given) = endpoint(text)?;
            changed.host = host.unwrap_or(changed.host);
            check_host(&changed.host)?;
            changed.skip_tls_verify = skip;
            files = Some(given);
        }
        store.write(&changed, files)?;
        output::line(&self.name);
        output::note(format!("Successfully updated context \"{}\"", self.name));
        Ok(())
    }
}

/// The context that flags and the environment make.
fn default_context(globals: &Globals) -> Context {
    Context {
        name: context::DEFAULT.to_owned(),
        description: "Current SHOAL_HOST or DOCKER_HOST based configuration".to_owned(),
        host: globals.default_host(),
        skip_tls_verify: false,
    }
}

impl Inspect {
    fn run(self, store: &Store, globals: &Globals) -> Result<()> {
        let names = if self.names.is_empty() {
            vec![globals.context_name()?]
        } else {
            self.names
        };
        let mut objects = Vec::new();
        for name in names {
            objects.push(if name == context::DEFAULT {
                document(&default_context(globals), "<IN MEMORY>", "<IN MEMORY>", &[])
            } else {
                let found = store.read(&name)?;
                let (meta, tls) = store.places(&name);
                let files = TLS_FILES.map(|(_, file)| file);
                let files: Vec<&str> = files
                    .into_iter()
                    .filter(|file| store.tls(&name).join(file).exists())
                    .collect();
                let (meta, tls) = (meta.display().to_string(), tls.display().to_string());
                document(&found, &meta, &tls, &files)
            });
        }
        output::inspect(self.format.as_deref(), &objects)
    }
}

fn document(context: &Context, meta: &str, tls: &str, files: &[&str]) -> Value {
    let metadata = match context.description.as_str() {
        "" => json!({}),
        description => json!({"Description": description}),
    };
    json!({
        "Name": context.name,
        "Metadata": metadata,
        "Endpoints": {"docker": {"Host": context.host, "SkipTLSVerify": context.skip_tls_verify}},
        "TLSMaterial": if files.is_empty() { json!({}) } else { json!({"docker": files}) },
        "Storage": {"MetadataPath": meta, "TLSPath": tls},
    })
}

fn list(format: &ListFormat, store: &Store, globals: &Globals) -> Result<()> {
    let current = globals.context_name()?;
    let mut all = vec![default_context(globals)];
    all.extend(store.list()?);
    let tabular = format
        .format
        .as_deref()
        .is_none_or(|text| text.starts_with("table"));
    let rows = all
        .iter()
        .map(|context| {
            let used = context.name == current;
            let mark = if used && tabular { " *" } else { "" };
            row! {
                "Name" => if format.quiet { context.name.clone() } else { format!("{}{mark}", context.name) },
                "Description" => ellipsis(&context.description, DESCRIPTION_WIDTH),
                "DockerEndpoint" => context.host.clone(),
                "Current" => used,
                "Error" => "",
                "ContextType" => "moby",
            }
        })
        .collect();
    let columns = [
        column("Name", "NAME"),
        column("Description", "DESCRIPTION"),
        column("DockerEndpoint", "DOCKER ENDPOINT"),
        column("Error", "ERROR"),
        hidden("Current", "CURRENT"),
        hidden("ContextType", "TYPE"),
    ];
    format.print(&columns, "Name", rows)?;
    if environment_host().is_some() && globals.context.is_none() {
        output::note(
            "Warning: SHOAL_HOST or DOCKER_HOST environment variable overrides the active context. To use a context, \
             either set the global --context flag, or unset it.",
        );
    }
    Ok(())
}

impl Remove {
    fn run(self, store: &Store, globals: &Globals) -> Result<()> {
        let current = globals.context_name()?;
        let mut errors = Vec::new();
        for name in &self.names {
            match remove(name, *name == current, self.force, store) {
                Ok(()) => output::line(name),
                Err(error) => errors.push(format!("{error:#}")),
            }
        }
        output::fail_with(errors)
    }
}

fn remove(name: &str, current: bool, force: bool, store: &Store) -> Result<()> {
    if name == context::DEFAULT {
        bail!("context \"default\" cannot be removed");
    }
    if current && !force {
        bail!("context {name:?} is in use, set -f flag to force remove");
    }
    match store.read(name) {
        Err(_) if force => return Ok(()),
        found => found.map(drop)?,
    }
    store.remove(name)?;
    let mut file = ConfigFile::load()?;
    if file.text("currentContext") == Some(name) {
        file.set_text("currentContext", None);
        file.save()?;
    }
    Ok(())
}

impl Use {
    fn run(self, store: &Store) -> Result<()> {
        let mut file = ConfigFile::load()?;
        if self.name == context::DEFAULT {
            file.set_text("currentContext", None);
        } else {
            store.read(&self.name)?;
            file.set_text("currentContext", Some(&self.name));
        }
        file.save()?;
        output::line(&self.name);
        output::note(format!("Current context is now \"{}\"", self.name));
        if environment_host().is_some() {
            output::note(
                "Warning: SHOAL_HOST or DOCKER_HOST environment variable overrides the active context. To use it, \
                 either set the global --context flag, or unset it.",
            );
        }
        Ok(())
    }
}
