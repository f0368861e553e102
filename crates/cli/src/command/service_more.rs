//! `shoal service explain` and `shoal service history`: what docker has no command for.

use anyhow::Result;
use clap::Args;
use serde_json::Value;

use crate::{
    client::{Client, Target},
    human, image_ref,
    json::{is, items, number, text, texts},
    output::{self, ListFormat, column, hidden, row},
};

/// Say for every node why the service's next task could run there or not
#[derive(Args)]
pub(crate) struct Explain {
    service: String,
    #[command(flatten)]
    list: ListFormat,
}

/// List the earlier specs of a service, to which 'rollback --to' leads
#[derive(Args)]
pub(crate) struct History {
    service: String,
    #[command(flatten)]
    list: ListFormat,
}

impl Explain {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let target = Target::new("/shoal/services/{}/explain", &[&self.service]);
        let explained = client.get(target).await?;
        let columns = [
            column("Node", "NODE"),
            column("Verdict", "VERDICT"),
            column("Service", "OF THIS SERVICE"),
            column("Tasks", "TASKS"),
            column("Why", "WHY"),
            hidden("ID", "ID"),
        ];
        let rows = items(&explained, "/Nodes").iter().map(|node| {
            let reasons = texts(node, "/Reasons");
            let verdict = match (reasons.is_empty(), is(node, "/Next")) {
                (false, _) => "no",
                (true, true) => "next",
                (true, false) => "yes",
            };
            let why = match number(node, "/Failures") {
                0 => reasons.join("; "),
                n if reasons.is_empty() => format!("avoided: {n} failures in 5 minutes"),
                _ => reasons.join("; "),
            };
            row! {
                "Node" => text(node, "/Hostname"),
                "Verdict" => verdict,
                "Service" => number(node, "/ServiceTasks").to_string(),
                "Tasks" => number(node, "/Tasks").to_string(),
                "Why" => why,
                "ID" => text(node, "/Node"),
            }
        });
        self.list.print(&columns, "ID", rows.collect())?;
        if self.list.format.is_some() || self.list.quiet {
            return Ok(());
        }
        let gate = text(&explained, "/Gate");
        if !gate.is_empty() {
            output::line(format!("tasks do not start yet: {gate}"));
        }
        for task in items(&explained, "/Waiting") {
            let why = Some(text(task, "/Err")).filter(|why| !why.is_empty());
            let why = why.unwrap_or("is about to be placed");
            output::line(format!(
                "{}.{} waits: {why}",
                self.service,
                number(task, "/Slot")
            ));
        }
        Ok(())
    }
}

impl History {
    pub(crate) async fn run(self, client: &Client) -> Result<()> {
        let target = Target::new("/shoal/services/{}/history", &[&self.service]);
        let history = client.get(target).await?;
        let columns = [
            column("Revision", "REVISION"),
            column("Until", "UNTIL"),
            column("Image", "IMAGE"),
        ];
        let now = shoal_api::Timestamp::now();
        let rows = history
            .as_array()
            .into_iter()
            .flatten()
            .map(|revision: &Value| {
                let until = match is(revision, "/Current") {
                    true => "now".to_owned(),
                    false => human::ago(now, human::time(text(revision, "/ReplacedAt"))),
                };
                let image = text(revision, "/Spec/TaskTemplate/ContainerSpec/Image");
                row! {
                    "Revision" => number(revision, "/Revision").to_string(),
                    "Until" => until,
                    "Image" => image_ref::familiar(image),
                }
            });
        self.list.print(&columns, "Revision", rows.collect())
    }
}
