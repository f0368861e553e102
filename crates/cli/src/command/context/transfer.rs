//! `shoal context export` and `import`: a context as one archive, in docker's form.

use std::{
    fs,
    io::{self, IsTerminal as _, Read as _, Write as _},
    path::{Component, Path},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    context::{self, Store},
    output,
};

/// Bytes of an archive that can be imported, as with docker.
const ARCHIVE_BYTES_MAX: u64 = 10 << 20;
const META: &str = "meta.json";

/// Export a context to a tar archive FILE or a tar stream on STDOUT
#[derive(Args)]
pub(crate) struct Export {
    #[arg(value_name = "CONTEXT")]
    name: String,
    /// The archive; - for standard output (default CONTEXT.dockercontext)
    #[arg(value_name = "FILE|-")]
    file: Option<String>,
}

/// Import a context from a tar file
#[derive(Args)]
pub(crate) struct Import {
    #[arg(value_name = "CONTEXT")]
    name: String,
    /// The archive; - for standard input
    #[arg(value_name = "FILE|-")]
    file: String,
}

impl Export {
    pub(super) fn run(self, store: &Store) -> Result<()> {
        context::check_name(&self.name)?;
        store.read(&self.name)?;
        let (meta, tls) = store.places(&self.name);
        let mut archive = tar::Builder::new(Vec::new());
        append(&mut archive, META, &meta.join(META))?;
        for (endpoint, files) in files_below(&tls)? {
            for file in files {
                let path = tls.join(&endpoint).join(&file);
                append(&mut archive, &format!("tls/{endpoint}/{file}"), &path)?;
            }
        }
        let bytes = archive.into_inner().context("cannot pack the context")?;
        let file = self
            .file
            .unwrap_or_else(|| format!("{}.dockercontext", self.name));
        if file == "-" {
            if io::stdout().is_terminal() {
                bail!("cowardly refusing to export to a terminal, specify a file path");
            }
            return io::stdout()
                .write_all(&bytes)
                .context("cannot write the context");
        }
        let made = fs::File::create_new(&file).and_then(|mut out| out.write_all(&bytes));
        made.with_context(|| format!("cannot write {file}"))?;
        output::note(format!("Written file {file:?}"));
        Ok(())
    }
}

/// Names of files by folder.
fn files_below(folder: &Path) -> Result<Vec<(String, Vec<String>)>> {
    let list = |folder: &Path| -> Result<Vec<String>> {
        let entries = match fs::read_dir(folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", folder.display()));
            }
        };
        let names = entries.flatten().map(|entry| entry.file_name());
        let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
        names.sort();
        Ok(names)
    };
    let endpoints = list(folder)?.into_iter();
    endpoints
        .map(|name| {
            let files = list(&folder.join(&name))?;
            Ok((name, files))
        })
        .collect()
}

fn append(archive: &mut tar::Builder<Vec<u8>>, name: &str, path: &Path) -> Result<()> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o600);
    let appended = archive.append_data(&mut header, name, bytes.as_slice());
    appended.context("cannot pack the context")
}

impl Import {
    pub(super) fn run(self, store: &Store) -> Result<()> {
        context::check_name(&self.name)?;
        if store.read(&self.name).is_ok() {
            bail!("context {:?} already exists", self.name);
        }
        let source: Box<dyn io::Read> = if self.file == "-" {
            Box::new(io::stdin())
        } else {
            let file = fs::File::open(&self.file);
            Box::new(file.with_context(|| format!("open {}", self.file))?)
        };
        let mut archive = tar::Archive::new(source.take(ARCHIVE_BYTES_MAX));
        let (mut meta, mut tls) = (None, Vec::new());
        for entry in archive.entries().context("the archive cannot be read")? {
            let mut entry = entry.context("the archive cannot be read")?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path()?.into_owned();
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            let parts: Vec<String> = path
                .components()
                .map(|part| match part {
                    Component::Normal(name) => Ok(name.to_string_lossy().into_owned()),
                    _ => bail!("unexpected path {} in the archive", path.display()),
                })
                .collect::<Result<_>>()?;
            match &parts[..] {
                [name] if name == META => meta = Some(bytes),
                [folder, endpoint, name] if folder == "tls" => {
                    tls.push((endpoint.clone(), name.clone(), bytes));
                }
                _ => bail!("unexpected context file {} in the archive", path.display()),
            }
        }
        let meta = meta.context("invalid context: no metadata found")?;
        store.import(&self.name, &meta, tls)?;
        output::line(&self.name);
        output::note(format!("Successfully imported context {:?}", self.name));
        Ok(())
    }
}
