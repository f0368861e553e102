//! What the commands print: tables, templates, documents. The only module that writes to standard output.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::io::{IsTerminal as _, Write as _};

use anyhow::{Result, anyhow};
use serde_json::{Map, Value};

use crate::template;

/// Writes a line to standard output. A reader that went away ends the program, as SIGPIPE would.
pub(crate) fn line(text: impl std::fmt::Display) {
    write(format!("{text}\n").as_bytes());
}

/// Writes bytes to standard output.
pub(crate) fn write(bytes: &[u8]) {
    let mut out = std::io::stdout().lock();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(141);
    }
}

/// Writes bytes to standard error; a message nobody can see is no reason to fail.
pub(crate) fn write_error(bytes: &[u8]) {
    let _ = std::io::stderr().lock().write_all(bytes);
}

/// Writes a line to standard error.
pub(crate) fn note(text: impl std::fmt::Display) {
    write_error(format!("{text}\n").as_bytes());
}

/// Whether standard output is a terminal.
pub(crate) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// A column: the name of the field in templates, the header, and whether the table shows it when nothing is asked for.
pub(crate) struct Column {
    field: &'static str,
    header: &'static str,
    shown: bool,
}

/// A column of the default table.
pub(crate) const fn column(field: &'static str, header: &'static str) -> Column {
    Column {
        field,
        header,
        shown: true,
    }
}

/// A field that only templates show.
pub(crate) const fn hidden(field: &'static str, header: &'static str) -> Column {
    Column {
        field,
        header,
        shown: false,
    }
}

/// How a list is wanted.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ListFormat {
    /// Format output using a custom template: 'table', 'table TEMPLATE', 'json', or a Go template
    #[arg(long, value_name = "string")]
    pub(crate) format: Option<String>,
    /// Only display IDs
    #[arg(short, long)]
    pub(crate) quiet: bool,
}

/// Rows by field name.
pub(crate) type Row = Map<String, Value>;

/// Makes a row of `field => value` pairs.
macro_rules! row {
    ($($field:literal => $value:expr),* $(,)?) => {{
        let mut row = serde_json::Map::new();
        $(row.insert($field.to_owned(), serde_json::Value::from($value));)*
        row
    }};
}
pub(crate) use row;

impl ListFormat {
    /// Prints the rows; `quiet` prints this field alone.
    pub(crate) fn print(&self, columns: &[Column], id: &str, rows: Vec<Row>) -> Result<()> {
        write(self.render(columns, id, rows)?.as_bytes());
        Ok(())
    }

    fn render(&self, columns: &[Column], id: &str, rows: Vec<Row>) -> Result<String> {
        let mut out = String::new();
        match self.format.as_deref().unwrap_or("table") {
            _ if self.quiet && self.format.as_deref().is_none_or(|f| f == "table") => {
                for row in rows {
                    out.push_str(row.get(id).and_then(Value::as_str).unwrap_or_default());
                    out.push('\n');
                }
            }
            "table" => {
                let shown = || columns.iter().filter(|column| column.shown);
                let mut cells = vec![shown().map(|c| c.header.to_owned()).collect::<Vec<_>>()];
                for row in &rows {
                    cells.push(shown().map(|c| text(row.get(c.field))).collect());
                }
                out = table(&cells);
            }
            "json" => {
                for row in rows {
                    // As Go's encoder, which makes JSON safe to stand in HTML.
                    let text = Value::Object(row).to_string();
                    let text = text.replace('<', "\\u003c").replace('>', "\\u003e");
                    out.push_str(&text.replace('&', "\\u0026"));
                    out.push('\n');
                }
            }
            format => {
                let (tabular, format) = match format.strip_prefix("table ") {
                    Some(rest) => (true, rest),
                    None => (false, format),
                };
                let template = template::compile(format)?;
                let mut lines = Vec::new();
                if tabular {
                    let headers = columns
                        .iter()
                        .map(|c| (c.field.to_owned(), c.header.into()))
                        .collect();
                    lines.push(template.render_row(&Value::Object(headers))?);
                }
                for row in rows {
                    lines.push(template.render_row(&Value::Object(row))?);
                }
                if tabular {
                    let cells: Vec<Vec<String>> = lines
                        .iter()
                        .map(|line| line.split('\t').map(str::to_owned).collect())
                        .collect();
                    out = table(&cells);
                } else {
                    for line in lines {
                        out.push_str(&line);
                        out.push('\n');
                    }
                }
            }
        }
        Ok(out)
    }
}

fn text(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    }
}

/// Aligns cells as docker does (Go's tabwriter: ten characters at least, three spaces between).
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    aligned(rows, 10)
}

/// Aligns cells as `docker top` does: twenty characters at least.
pub(crate) fn wide_table(rows: &[Vec<String>]) -> String {
    aligned(rows, 20)
}

fn aligned(rows: &[Vec<String>], least: usize) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
        // Go's tabwriter takes its minimum with the padding within it.
        (widest + 3).max(least)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            // The last cell ends the line; it is no column.
            if column + 1 < row.len() {
                let fill = widths[column] - cell.chars().count();
                out.extend(std::iter::repeat_n(' ', fill));
            }
        }
        out.push('\n');
    }
    out
}

/// Prints objects as `inspect` does: an array of documents, or a template applied to each.
pub(crate) fn inspect(format: Option<&str>, objects: &[Value]) -> Result<()> {
    match format {
        None | Some("") => {
            if objects.is_empty() {
                line("[]");
            } else {
                line(indented(&Value::Array(objects.to_vec())));
            }
        }
        Some("json") => {
            for object in objects {
                line(object);
            }
        }
        Some(format) => {
            let template = template::compile(format)?;
            for object in objects {
                line(template.render(object)?);
            }
        }
    }
    Ok(())
}

/// JSON with docker's four spaces.
pub(crate) fn indented(value: &Value) -> String {
    let mut out = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, formatter);
    serde::Serialize::serialize(value, &mut serializer).expect("a JSON value is JSON");
    String::from_utf8(out).expect("JSON is UTF-8")
}

/// Inspects several objects: prints those that were found, then fails with the first that was not.
pub(crate) async fn inspect_each<F>(
    format: Option<&str>,
    references: &[String],
    mut get: impl FnMut(String) -> F,
) -> Result<()>
where
    F: Future<Output = Result<Value>>,
{
    let mut objects = Vec::new();
    let mut errors = Vec::new();
    for reference in references {
        match get(reference.clone()).await {
            Ok(object) => objects.push(object),
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    inspect(format, &objects)?;
    fail_with(errors)
}

/// Does something to each of several objects, prints what it returns, and fails with all that failed.
pub(crate) async fn each<F>(references: &[String], mut act: impl FnMut(String) -> F) -> Result<()>
where
    F: Future<Output = Result<Option<String>>>,
{
    let mut errors = Vec::new();
    for reference in references {
        match act(reference.clone()).await {
            Ok(Some(text)) => line(text),
            Ok(None) => {}
            Err(error) => errors.push(format!("{error:#}")),
        }
    }
    fail_with(errors)
}

/// Fails with these messages, one a line, if there are any.
pub(crate) fn fail_with(errors: Vec<String>) -> Result<()> {
    if errors.is_empty() {
        Ok(())
    } else {
        Err(anyhow!(errors.join("\n")))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const COLUMNS: [Column; 3] = [
        column("ID", "ID"),
        column("Name", "NAME"),
        hidden("Mode", "MODE"),
    ];

    fn render(format: Option<&str>, quiet: bool) -> String {
        let format = ListFormat {
            format: format.map(str::to_owned),
            quiet,
        };
        let rows = vec![
            row! {"ID" => "k7q", "Name" => "web", "Mode" => "replicated"},
            row! {"ID" => "0123456789ab", "Name" => "a-longer-name", "Mode" => "global"},
        ];
        match format.render(&COLUMNS, "ID", rows) {
            Ok(text) => text,
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_table_is_aligned_as_dockers() {
        expect![[r#"
            ID             NAME
            k7q            web
            0123456789ab   a-longer-name
        "#]]
        .assert_eq(&render(None, false));
    }

    #[test]
    fn a_short_column_has_ten_characters() {
        assert_eq!(table(&[vec!["A".into(), "B".into()]]), "A         B\n");
    }

    #[test]
    fn quiet_prints_ids() {
        assert_eq!(render(None, true), "k7q\n0123456789ab\n");
    }

    #[test]
    fn templates_see_hidden_fields() {
        assert_eq!(
            render(Some("{{.Name}}={{upper .Mode}}"), false),
            "web=REPLICATED\na-longer-name=GLOBAL\n"
        );
        expect![[r#"
            NAME            MODE
            web             replicated
            a-longer-name   global
        "#]]
        .assert_eq(&render(Some("table {{.Name}}\\t{{.Mode}}"), false));
        assert_eq!(
            render(Some("json"), false).lines().next(),
            Some(r#"{"ID":"k7q","Mode":"replicated","Name":"web"}"#)
        );
    }

    #[test]
    fn a_template_that_is_none_is_refused() {
        assert!(render(Some("{{.Name"), false).starts_with("template parsing error"));
        assert!(render(Some("{{.Nam}}"), false).contains("Nam"));
    }
}
