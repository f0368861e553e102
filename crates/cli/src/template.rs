//! `--format`: Go templates, in which `\t` and `\n` stand for a tab and a line end.

use anyhow::Result;
use serde_json::Value;
use shoal_api::template::{self, Missing};

/// A template, ready to be filled in.
pub(crate) struct Template(template::Template);

/// Parses a template.
pub(crate) fn compile(text: &str) -> Result<Template> {
    let text = text.replace("\\t", "\t").replace("\\n", "\n");
    Ok(Template(template::Template::parse(&text)?))
}

impl Template {
    /// Fills in the fields of `value`; a field that is not there is `<no value>`.
    pub(crate) fn render(&self, value: &Value) -> Result<String> {
        Ok(self.0.render(value, Missing::NoValue)?)
    }

    /// Fills in the fields of a row of a list, which has all fields that there are.
    pub(crate) fn render_row(&self, row: &Value) -> Result<String> {
        Ok(self.0.render(row, Missing::ErrorAtTop)?)
    }
}
