//! Go templates over JSON: `{{range .Mounts}}{{.Source}} {{end}}`, with the functions that docker adds to Go's.
//!
//! Written after the package documentation of Go's `text/template`. Maps are walked in the order of their keys and
//! values are printed as Go prints them, which scripts rely on. Two kinds of text are templates: the command line's
//! `--format`, and parts of a service's spec ([`task`]).

mod eval;
mod function;
mod parse;
pub mod task;

use serde_json::Value;

/// What is wrong with a template, or with what it is filled in with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TemplateError {
    /// It is none.
    #[error("template parsing error: {0}")]
    Syntax(String),
    /// A field that is not there, a function that fails.
    #[error("template: {0}")]
    Fill(String),
}

/// What a field stands for that a value does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// `<no value>`.
    NoValue,
    /// As that, but the outermost value has all fields that there are: another name is an error.
    ErrorAtTop,
    /// Always an error, as with Go's `missingkey=error`.
    Error,
}

/// A template, ready to be filled in.
#[derive(Debug)]
pub struct Template(Vec<parse::Node>);

impl Template {
    /// Parses a template.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Self::parse_with(text, &[])
    }

    /// Parses a template that may call functions of these names, too.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse_with(text: &str, functions: &[&str]) -> Result<Self, TemplateError> {
        parse::parse(text, functions)
            .map(Self)
            .map_err(TemplateError::Syntax)
    }

    /// Fills in the fields of a value.
    ///
    /// # Errors
    /// A field or an argument that makes no sense.
    pub fn render(&self, value: &Value, missing: Missing) -> Result<String, TemplateError> {
        self.render_with(value, missing, &|_, _| None)
    }

    /// Fills in, with functions of the caller's; they answer `None` for names that are not theirs.
    ///
    /// # Errors
    /// A field or an argument that makes no sense; what a function says.
    pub fn render_with(
        &self,
        value: &Value,
        missing: Missing,
        functions: &dyn Fn(&str, &[Value]) -> Option<Result<Value, String>>,
    ) -> Result<String, TemplateError> {
        eval::render(&self.0, value, missing, functions).map_err(TemplateError::Fill)
    }
}

#[cfg(test)]
mod tests;
