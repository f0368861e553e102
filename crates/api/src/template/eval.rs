//! A tree and a value to text.

use serde_json::Value;

use super::{
    Missing,
    function::{self, Outcome},
    parse::{Node, Operand, Pipe},
};

/// Functions besides those that are built in; `None` for a name that is not theirs.
pub(super) type More<'a> = &'a dyn Fn(&str, &[Value]) -> Option<Outcome<Value>>;

/// Why the nodes after this one are left out.
#[derive(PartialEq, Eq)]
enum Flow {
    On,
    Break,
    Continue,
}

struct Scope<'a> {
    root: &'a Value,
    missing: Missing,
    more: More<'a>,
    variables: Vec<(String, Value)>,
    out: String,
}

/// Fills in a template.
pub(super) fn render(
    nodes: &[Node],
    root: &Value,
    missing: Missing,
    more: More<'_>,
) -> Outcome<String> {
    let mut scope = Scope {
        root,
        missing,
        more,
        variables: vec![(String::new(), root.clone())],
        out: String::new(),
    };
    scope.nodes(nodes, root)?;
    Ok(scope.out)
}

impl Scope<'_> {
    fn nodes(&mut self, nodes: &[Node], dot: &Value) -> Outcome<Flow> {
        for node in nodes {
            let flow = self.node(node, dot)?;
            if flow != Flow::On {
                return Ok(flow);
            }
        }
        Ok(Flow::On)
    }

    fn node(&mut self, node: &Node, dot: &Value) -> Outcome<Flow> {
        let mark = self.variables.len();
        let flow = match node {
            Node::Text(text) => {
                self.out.push_str(text);
                return Ok(Flow::On);
            }
            Node::Break => return Ok(Flow::Break),
            Node::Continue => return Ok(Flow::Continue),
            Node::Print(pipe) => {
                let value = self.pipe(pipe, dot)?;
                if pipe.variables.is_empty() {
                    self.out.push_str(&function::show(&value));
                } else {
                    self.assign(pipe, &[value])?;
                }
                // A variable made by an action of its own lives on behind it.
                return Ok(Flow::On);
            }
            Node::If(pipe, body, otherwise) => {
                let value = self.pipe(pipe, dot)?;
                let truth = function::truth(&value);
                self.assign(pipe, &[value])?;
                self.nodes(if truth { body } else { otherwise }, dot)?
            }
            Node::With(pipe, body, otherwise) => {
                let value = self.pipe(pipe, dot)?;
                self.assign(pipe, std::slice::from_ref(&value))?;
                match function::truth(&value) {
                    true => self.nodes(body, &value)?,
                    false => self.nodes(otherwise, dot)?,
                }
            }
            Node::Range(pipe, body, otherwise) => self.range(pipe, body, otherwise, dot)?,
        };
        self.variables.truncate(mark);
        Ok(flow)
    }

    fn range(
        &mut self,
        pipe: &Pipe,
        body: &[Node],
        otherwise: &[Node],
        dot: &Value,
    ) -> Outcome<Flow> {
        let items: Vec<(Value, Value)> = match self.pipe(pipe, dot)? {
            Value::Array(items) => items
                .into_iter()
                .enumerate()
                .map(|(i, item)| (i.into(), item))
                .collect(),
            // In the order of the keys, as Go does.
            Value::Object(fields) => {
                let mut fields: Vec<(String, Value)> = fields.into_iter().collect();
                fields.sort_by(|a, b| a.0.cmp(&b.0));
                fields
                    .into_iter()
                    .map(|(key, value)| (key.into(), value))
                    .collect()
            }
            Value::Null => Vec::new(),
            other => {
                return Err(format!(
                    "range can't iterate over {}",
                    function::show(&other)
                ));
            }
        };
        if items.is_empty() {
            return self.nodes(otherwise, dot);
        }
        for (key, item) in items {
            let mark = self.variables.len();
            match pipe.variables.len() {
                0 => {}
                1 => self.assign(pipe, std::slice::from_ref(&item))?,
                _ => self.assign(pipe, &[key, item.clone()])?,
            }
            let flow = self.nodes(body, &item)?;
            self.variables.truncate(mark);
            if flow == Flow::Break {
                break;
            }
        }
        Ok(Flow::On)
    }

    fn assign(&mut self, pipe: &Pipe, values: &[Value]) -> Outcome<()> {
        for (name, value) in pipe.variables.iter().zip(values) {
            if pipe.declares {
                self.variables.push((name.clone(), value.clone()));
                continue;
            }
            let known = self
                .variables
                .iter_mut()
                .rev()
                .find(|(known, _)| known == name);
            known
                .ok_or_else(|| format!("undefined variable ${name}"))?
                .1 = value.clone();
        }
        Ok(())
    }

    fn pipe(&mut self, pipe: &Pipe, dot: &Value) -> Outcome<Value> {
        let mut result = None;
        for command in &pipe.commands {
            result = Some(self.command(command, dot, result)?);
        }
        Ok(result.unwrap_or_default())
    }

    fn command(
        &mut self,
        command: &[Operand],
        dot: &Value,
        piped: Option<Value>,
    ) -> Outcome<Value> {
        let (first, others) = command.split_first().ok_or("missing value for command")?;
        if let Operand::Function(name) = first {
            // These two stop as soon as they know.
            if let ("and" | "or", None) = (name.as_str(), &piped) {
                let mut last = Value::Null;
                for operand in others {
                    last = self.operand(operand, dot)?;
                    if function::truth(&last) == (name == "or") {
                        break;
                    }
                }
                return Ok(last);
            }
            let mut args = others
                .iter()
                .map(|operand| self.operand(operand, dot))
                .collect::<Outcome<Vec<_>>>()?;
            args.extend(piped);
            return self.call(name, &args);
        }
        // The one method that rows have: `.Label "key"`.
        if let (Operand::Dot(fields), [operand]) = (first, others)
            && fields.last().is_some_and(|field| field == "Label")
        {
            let key = function::show(&self.operand(operand, dot)?);
            let labels = function::show(&dot["Labels"]);
            let found = labels
                .split(',')
                .find_map(|pair| pair.split_once('=').filter(|(name, _)| *name == key));
            return Ok(found.map_or("", |(_, value)| value).into());
        }
        if !others.is_empty() || piped.is_some() {
            return Err("can't give argument to non-function".to_owned());
        }
        self.operand(first, dot)
    }

    fn operand(&mut self, operand: &Operand, dot: &Value) -> Outcome<Value> {
        match operand {
            Operand::Dot(fields) => self.walk(dot, fields),
            Operand::Variable(name, fields) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                let value = known
                    .ok_or_else(|| format!("undefined variable ${name}"))?
                    .1
                    .clone();
                self.walk(&value, fields)
            }
            Operand::Literal(value) => Ok(value.clone()),
            Operand::Function(name) => self.call(name, &[]),
            Operand::Group(pipe, fields) => {
                let value = self.pipe(pipe, dot)?;
                self.walk(&value, fields)
            }
        }
    }

    fn call(&self, name: &str, args: &[Value]) -> Outcome<Value> {
        (self.more)(name, args).unwrap_or_else(|| function::call(name, args))
    }

    /// Whether a field that this value does not have is an error.
    fn refuses(&self, value: &Value) -> bool {
        match self.missing {
            Missing::NoValue => false,
            Missing::ErrorAtTop => std::ptr::eq(value, self.root),
            Missing::Error => true,
        }
    }

    fn walk(&self, from: &Value, fields: &[String]) -> Outcome<Value> {
        let mut value = from;
        for field in fields {
            value = match value {
                Value::Object(known) => match known.get(field) {
                    Some(value) => value,
                    None if self.refuses(value) => {
                        let names: Vec<&str> = known.keys().map(String::as_str).collect();
                        return Err(format!(
                            "can't evaluate field {field}: there are {}",
                            names.join(", ")
                        ));
                    }
                    None => &Value::Null,
                },
                Value::Null => &Value::Null,
                other => {
                    return Err(format!(
                        "can't evaluate field {field} in {}",
                        function::show(other)
                    ));
                }
            };
        }
        Ok(value.clone())
    }
}
