//! Text to a tree.

use serde_json::Value;

/// Structures and parentheses within each other; deeper is a mistake or malice.
const DEPTH_MAX: usize = 100;

/// A part of a template.
#[derive(Debug)]
pub(super) enum Node {
    Text(String),
    Print(Pipe),
    If(Pipe, Vec<Self>, Vec<Self>),
    With(Pipe, Vec<Self>, Vec<Self>),
    Range(Pipe, Vec<Self>, Vec<Self>),
    Break,
    Continue,
}

/// Commands, each of which gets the value of the one before as its last argument.
#[derive(Debug)]
pub(super) struct Pipe {
    /// Variables that take the value; two of them only in a range.
    pub(super) variables: Vec<String>,
    /// Whether they are made here, rather than set.
    pub(super) declares: bool,
    pub(super) commands: Vec<Vec<Operand>>,
}

/// A word of a command.
#[derive(Debug)]
pub(super) enum Operand {
    /// `.` with these fields.
    Dot(Vec<String>),
    /// `$name` with these fields; `$` alone has an empty name.
    Variable(String, Vec<String>),
    Literal(Value),
    Function(String),
    Group(Pipe, Vec<String>),
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    /// `.a.b`; `.` alone has no fields.
    Field(Vec<String>),
    Variable(String, Vec<String>),
    Literal(Value),
    Word(String),
    Symbol(&'static str),
}

type Parsed<T> = Result<T, String>;

/// Parses a whole template; `more` are names of functions besides those that are built in.
pub(super) fn parse(text: &str, more: &[&str]) -> Parsed<Vec<Node>> {
    let mut parser = Parser {
        rest: text,
        more,
        trim: false,
        depth: 0,
    };
    let (nodes, end) = parser.nodes()?;
    match end {
        None => Ok(nodes),
        Some(end) => Err(format!("unexpected {{{{{}}}}}", end.keyword)),
    }
}

/// What ends a list of nodes: `end` or `else` with what follows it.
struct End {
    keyword: &'static str,
    tokens: Vec<Token>,
}

struct Parser<'a> {
    rest: &'a str,
    more: &'a [&'a str],
    /// Whether the last action ended in `-}}`.
    trim: bool,
    depth: usize,
}

impl Parser<'_> {
    fn nodes(&mut self) -> Parsed<(Vec<Node>, Option<End>)> {
        let mut nodes = Vec::new();
        loop {
            let start = self.rest.find("{{").unwrap_or(self.rest.len());
            let (mut text, after) = self.rest.split_at(start);
            if std::mem::take(&mut self.trim) {
                text = text.trim_start();
            }
            let Some(action) = after.strip_prefix("{{") else {
                push_text(&mut nodes, text);
                self.rest = "";
                return Ok((nodes, None));
            };
            let action = match action
                .strip_prefix('-')
                .filter(|rest| rest.starts_with([' ', '\t', '\n']))
            {
                Some(rest) => {
                    text = text.trim_end();
                    rest
                }
                None => action,
            };
            push_text(&mut nodes, text);
            let tokens = self.action(action)?;
            let Some((first, others)) = tokens.split_first() else {
                continue;
            };
            let keyword = match first {
                Token::Word(word) => word.as_str(),
                _ => "",
            };
            match keyword {
                "end" if others.is_empty() => {
                    return Ok((
                        nodes,
                        Some(End {
                            keyword: "end",
                            tokens: Vec::new(),
                        }),
                    ));
                }
                "else" => {
                    return Ok((
                        nodes,
                        Some(End {
                            keyword: "else",
                            tokens: others.to_vec(),
                        }),
                    ));
                }
                "if" | "with" | "range" => nodes.push(self.structure(keyword, others)?),
                "break" if others.is_empty() => nodes.push(Node::Break),
                "continue" if others.is_empty() => nodes.push(Node::Continue),
                "define" | "template" | "block" => {
                    return Err(format!("{keyword} is not supported"));
                }
                _ => nodes.push(Node::Print(pipe(&tokens, self.depth, self.more)?)),
            }
        }
    }

    /// Reads an action up to its end; a comment has no tokens.
    fn action(&mut self, text: &str) -> Parsed<Vec<Token>> {
        // The text of `self.rest` from here on.
        let from = self.rest.len() - text.len();
        let trimmed = text.trim_start();
        if trimmed.starts_with("/*") {
            let end = trimmed.find("*/").ok_or("unclosed comment")?;
            let after = trimmed[end + 2..].trim_start();
            let (trim, after) = match after.strip_prefix('-') {
                Some(after) => (true, after),
                None => (false, after),
            };
            let after = after
                .strip_prefix("}}")
                .ok_or("comment ends before closing delimiter")?;
            self.trim = trim;
            self.rest = &self.rest[self.rest.len() - after.len()..];
            return Ok(Vec::new());
        }
        let (tokens, length, trim) = tokens(text)?;
        self.trim = trim;
        self.rest = &self.rest[from + length..];
        if tokens.is_empty() {
            return Err("missing value for command".to_owned());
        }
        Ok(tokens)
    }

    fn structure(&mut self, keyword: &str, tokens: &[Token]) -> Parsed<Node> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err("too many structures within each other".to_owned());
        }
        if tokens.is_empty() {
            return Err(format!("missing value for {keyword}"));
        }
        let pipe = pipe(tokens, self.depth, self.more)?;
        if pipe.variables.len() > 1 && keyword != "range" {
            return Err(format!("too many declarations in {keyword}"));
        }
        let unclosed = || format!("unclosed {{{{{keyword}}}}}");
        let (body, end) = self.nodes()?;
        let end = end.ok_or_else(unclosed)?;
        let otherwise = match (end.keyword, end.tokens.split_first()) {
            ("end", _) => Vec::new(),
            (_, None) => {
                let (nodes, end) = self.nodes()?;
                match end {
                    Some(End { keyword: "end", .. }) => nodes,
                    Some(_) => return Err("expected end; found {{else}}".to_owned()),
                    None => return Err(unclosed()),
                }
            }
            // `else if` shares the end of what it continues.
            (_, Some((Token::Word(word), others))) if word == "if" || word == "with" => {
                vec![self.structure(word, others)?]
            }
            _ => return Err("unexpected words after else".to_owned()),
        };
        self.depth -= 1;
        Ok(match keyword {
            "if" => Node::If(pipe, body, otherwise),
            "with" => Node::With(pipe, body, otherwise),
            _ => Node::Range(pipe, body, otherwise),
        })
    }
}

fn push_text(nodes: &mut Vec<Node>, text: &str) {
    if !text.is_empty() {
        nodes.push(Node::Text(text.to_owned()));
    }
}

fn pipe(tokens: &[Token], depth: usize, more: &[&str]) -> Parsed<Pipe> {
    if depth > DEPTH_MAX {
        return Err("too many parentheses within each other".to_owned());
    }
    let (variables, declares, tokens) = declaration(tokens);
    let mut commands = vec![Vec::new()];
    let mut rest = tokens;
    while let Some((token, after)) = rest.split_first() {
        rest = after;
        let command = commands.last_mut().expect("starts with one");
        match token {
            Token::Symbol("|") => commands.push(Vec::new()),
            Token::Symbol("(") => {
                let close = closing(rest).ok_or("unclosed left paren")?;
                let inner = pipe(&rest[..close], depth + 1, more)?;
                rest = &rest[close + 1..];
                // `(index .Mounts 0).Source` comes as a field right behind.
                let fields = match rest.split_first() {
                    Some((Token::Symbol("."), after)) => match after.split_first() {
                        Some((Token::Field(fields), after)) => {
                            rest = after;
                            fields.clone()
                        }
                        _ => return Err("unexpected . after term".to_owned()),
                    },
                    _ => Vec::new(),
                };
                command.push(Operand::Group(inner, fields));
            }
            Token::Symbol(symbol) => return Err(format!("unexpected {symbol:?} in command")),
            Token::Field(fields) => command.push(Operand::Dot(fields.clone())),
            Token::Variable(name, fields) => {
                command.push(Operand::Variable(name.clone(), fields.clone()))
            }
            Token::Literal(value) => command.push(Operand::Literal(value.clone())),
            Token::Word(word)
                if super::function::is_known(word) || more.contains(&word.as_str()) =>
            {
                command.push(Operand::Function(word.clone()))
            }
            Token::Word(word) => return Err(format!("function {word:?} not defined")),
        }
    }
    if commands.iter().any(Vec::is_empty) {
        return Err("missing value for command".to_owned());
    }
    Ok(Pipe {
        variables,
        declares,
        commands,
    })
}

/// Takes `$a := `, `$a = ` or `$a, $b := ` off the front.
fn declaration(tokens: &[Token]) -> (Vec<String>, bool, &[Token]) {
    let variable = |at: usize| match tokens.get(at) {
        Some(Token::Variable(name, fields)) if fields.is_empty() => Some(name.clone()),
        _ => None,
    };
    let symbol = |at: usize| match tokens.get(at) {
        Some(Token::Symbol(symbol)) => *symbol,
        _ => "",
    };
    match (variable(0), symbol(1), variable(2), symbol(3)) {
        (Some(a), ",", Some(b), sign @ (":=" | "=")) => (vec![a, b], sign == ":=", &tokens[4..]),
        (Some(a), sign @ (":=" | "="), ..) => (vec![a], sign == ":=", &tokens[2..]),
        _ => (Vec::new(), false, tokens),
    }
}

fn closing(tokens: &[Token]) -> Option<usize> {
    let mut open = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token {
            Token::Symbol("(") => open += 1,
            Token::Symbol(")") if open == 0 => return Some(at),
            Token::Symbol(")") => open -= 1,
            _ => {}
        }
    }
    None
}

/// The tokens of an action, its length with the closing braces, and whether it trims what follows.
fn tokens(text: &str) -> Parsed<(Vec<Token>, usize, bool)> {
    let mut tokens = Vec::new();
    let mut at = 0;
    loop {
        let rest = &text[at..];
        let Some(c) = rest.chars().next() else {
            return Err("unclosed action".to_owned());
        };
        if c.is_whitespace() {
            at += c.len_utf8();
            let after = &text[at..];
            if after.starts_with("-}}") {
                return Ok((tokens, at + 3, true));
            }
            continue;
        }
        if rest.starts_with("}}") {
            return Ok((tokens, at + 2, false));
        }
        let (token, length) = token(rest, c, tokens.last(), at > 0 && text[..at].ends_with(')'))?;
        tokens.extend(token);
        at += length;
    }
}

fn token(
    rest: &str,
    c: char,
    previous: Option<&Token>,
    behind_paren: bool,
) -> Parsed<(Vec<Token>, usize)> {
    let one = |token: Token, length: usize| Ok((vec![token], length));
    match c {
        '"' => {
            let length = string_length(rest).ok_or("unterminated quoted string")?;
            let text: String = serde_json::from_str(&rest[..length])
                .map_err(|_| format!("malformed string {}", &rest[..length]))?;
            one(Token::Literal(text.into()), length)
        }
        '`' => {
            let end = rest[1..]
                .find('`')
                .ok_or("unterminated raw quoted string")?;
            one(Token::Literal(rest[1..=end].into()), end + 2)
        }
        '.' if !rest[1..].starts_with(|c: char| c.is_ascii_digit()) => {
            let (fields, length) = fields(rest);
            // Behind a parenthesis it belongs to what stands in it.
            if behind_paren && previous == Some(&Token::Symbol(")")) {
                return Ok((vec![Token::Symbol("."), Token::Field(fields)], length));
            }
            one(Token::Field(fields), length)
        }
        '$' => {
            let name = word_length(&rest[1..]);
            let (fields, length) = fields(&rest[1 + name..]);
            one(
                Token::Variable(rest[1..=name].to_owned(), fields),
                1 + name + length,
            )
        }
        '(' => one(Token::Symbol("("), 1),
        ')' => one(Token::Symbol(")"), 1),
        '|' => one(Token::Symbol("|"), 1),
        ',' => one(Token::Symbol(","), 1),
        ':' if rest.starts_with(":=") => one(Token::Symbol(":="), 2),
        '=' => one(Token::Symbol("="), 1),
        c if c.is_ascii_digit() || "+-.".contains(c) => {
            let length = rest
                .find(|c: char| !(c.is_ascii_alphanumeric() || "+-._".contains(c)))
                .unwrap_or(rest.len());
            let number = rest[..length].trim_start_matches('+');
            match serde_json::from_str::<Value>(number) {
                Ok(value @ Value::Number(_)) => one(Token::Literal(value), length),
                _ => Err(format!("bad number syntax: {:?}", &rest[..length])),
            }
        }
        c if c.is_alphabetic() || c == '_' => {
            let length = word_length(rest);
            one(
                match &rest[..length] {
                    "true" => Token::Literal(true.into()),
                    "false" => Token::Literal(false.into()),
                    "nil" => Token::Literal(Value::Null),
                    word => Token::Word(word.to_owned()),
                },
                length,
            )
        }
        other => Err(format!("unexpected {other:?} in command")),
    }
}

/// `.a.b` as fields, with its length.
fn fields(text: &str) -> (Vec<String>, usize) {
    let mut fields = Vec::new();
    let mut at = 0;
    while text[at..].starts_with('.') {
        let length = word_length(&text[at + 1..]);
        if length == 0 {
            // `.` alone.
            at += usize::from(fields.is_empty());
            break;
        }
        fields.push(text[at + 1..=at + length].to_owned());
        at += 1 + length;
    }
    (fields, at)
}

fn word_length(text: &str) -> usize {
    text.find(|c: char| !(c.is_alphanumeric() || c == '_'))
        .unwrap_or(text.len())
}

fn string_length(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return Some(at + 1),
            _ => {}
        }
    }
    None
}
