//! A Dockerfile as a list of stages.

use super::{
    Instruction, ParseError,
    instruction::{self, Flags, take_flags},
    lines::{self, Line},
};

/// Steps of one file; more are no Dockerfile but an attack on the builder.
const STEPS_MAX: usize = 5_000;

/// A Dockerfile, read.
#[derive(Debug, Clone, PartialEq)]
pub struct Dockerfile {
    pub escape: char,
    /// `ARG`s before the first stage, with the lines that have them.
    pub meta_args: Vec<(String, Vec<(String, Option<String>)>)>,
    pub stages: Vec<Stage>,
    pub warnings: Vec<String>,
}

/// From one `FROM` to the next.
#[derive(Debug, Clone, PartialEq)]
pub struct Stage {
    /// The line as written.
    pub source: String,
    /// Image or earlier stage; may hold variables.
    pub base: String,
    /// In lower case.
    pub name: Option<String>,
    /// May hold variables.
    pub platform: Option<String>,
    pub steps: Vec<Step>,
}

/// One instruction of a stage.
#[derive(Debug, Clone, PartialEq)]
pub struct Step {
    /// The line as written, continuations joined.
    pub source: String,
    pub instruction: Instruction,
}

impl Dockerfile {
    /// Reads a Dockerfile; errors have docker's texts.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let lines = lines::split(text)?;
        let mut file = Self {
            escape: lines.escape,
            meta_args: Vec::new(),
            stages: Vec::new(),
            warnings: lines.warnings,
        };
        if lines.lines.len() > STEPS_MAX {
            return Err(ParseError::new(
                lines.lines[STEPS_MAX].number,
                format!("more than {STEPS_MAX} instructions"),
            ));
        }
        for Line { number, text } in lines.lines {
            let fail = |reason: String| ParseError::new(number, reason);
            let (keyword, rest) = split_keyword(&text);
            if keyword == "from" {
                file.stages.push(from(&text, rest).map_err(fail)?);
                continue;
            }
            let instruction = instruction::parse(&keyword, rest, file.escape).map_err(fail)?;
            match (file.stages.last_mut(), instruction) {
                (Some(stage), instruction) => stage.steps.push(Step {
                    source: text,
                    instruction,
                }),
                (None, Instruction::Arg(args)) => file.meta_args.push((text, args)),
                (None, _) => return Err(fail("no build stage in current context".to_owned())),
            }
        }
        match file.stages.is_empty() {
            true => Err(ParseError::new(1, "no build stage in current context")),
            false => Ok(file),
        }
    }

    /// Keeps the stages up to the one of this name, case aside, or number; false if there is none.
    pub fn keep_to_target(&mut self, target: &str) -> bool {
        let name = target.to_lowercase();
        let named = |stage: &Stage| stage.name.as_deref() == Some(&name);
        let number = target
            .parse::<usize>()
            .ok()
            .filter(|number| *number < self.stages.len());
        match self.stages.iter().position(named).or(number) {
            Some(at) => {
                self.stages.truncate(at + 1);
                true
            }
            None => false,
        }
    }

    /// Steps to announce: every `ARG` before the stages, every `FROM`, and all that follow.
    pub fn steps(&self) -> usize {
        let stages = self.stages.iter().map(|stage| 1 + stage.steps.len());
        self.meta_args.len() + stages.sum::<usize>()
    }
}

/// Reads an instruction that an image left for those built on it.
pub fn parse_trigger(text: &str) -> Result<Step, ParseError> {
    let fail = |reason: String| ParseError::new(1, reason);
    let lines = lines::split(text)?;
    let [line] = lines.lines.as_slice() else {
        return Err(fail(
            "onbuild trigger should be a single expression".to_owned(),
        ));
    };
    let (keyword, rest) = split_keyword(&line.text);
    if matches!(keyword.as_str(), "onbuild" | "from" | "maintainer") {
        let keyword = keyword.to_uppercase();
        return Err(fail(format!(
            "{keyword} isn't allowed as an ONBUILD trigger"
        )));
    }
    Ok(Step {
        source: line.text.clone(),
        instruction: instruction::parse(&keyword, rest, lines.escape).map_err(fail)?,
    })
}

fn split_keyword(text: &str) -> (String, &str) {
    let (keyword, rest) = text
        .split_once(char::is_whitespace)
        .map_or((text, ""), |(keyword, rest)| (keyword, rest.trim()));
    (keyword.to_lowercase(), rest)
}

fn from(line: &str, rest: &str) -> Result<Stage, String> {
    let (flags, rest) = take_flags(rest);
    let mut flags = Flags::new(flags)?;
    let platform = flags.take("platform")?;
    flags.finish()?;
    let words: Vec<&str> = rest.split_whitespace().collect();
    let (base, name) = match words.as_slice() {
        [base] => (*base, None),
        [base, word, name] if word.eq_ignore_ascii_case("as") => (*base, Some(name.to_lowercase())),
        _ => return Err("FROM requires either one or three arguments".to_owned()),
    };
    if let Some(name) = &name {
        let begins = name.starts_with(|c: char| c.is_ascii_lowercase());
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        if !begins || !name.chars().all(word) {
            return Err(format!(
                "invalid name for build stage: {name:?}, name can't start with a number or contain symbols"
            ));
        }
    }
    Ok(Stage {
        source: line.to_owned(),
        base: base.to_owned(),
        name,
        platform,
        steps: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn stages_are_told_apart() {
        let mut file = Dockerfile::parse(
            "ARG V=1\nFROM a:$V AS One\nRUN x\nFROM --platform=linux/amd64 one\nCOPY --from=0 /a /b\nCMD y",
        )
        .unwrap();
        assert_eq!(file.steps(), 6);
        assert_eq!(file.stages[0].name.as_deref(), Some("one"));
        assert_eq!(file.stages[1].platform.as_deref(), Some("linux/amd64"));
        assert!(!file.keep_to_target("two") && file.keep_to_target("ONE"));
        assert_eq!(file.stages.len(), 1);
    }

    #[test]
    fn mistakes_name_their_line() {
        let refused = |text: &str| Dockerfile::parse(text).unwrap_err().to_string();
        assert_eq!(
            refused("FROM a\n\nFOO b"),
            "dockerfile parse error on line 3: unknown instruction: FOO"
        );
        assert_eq!(
            refused("RUN a"),
            "dockerfile parse error on line 1: no build stage in current context"
        );
        assert_eq!(
            refused("FROM a b"),
            "dockerfile parse error on line 1: FROM requires either one or three arguments"
        );
        assert!(refused("FROM a AS 1x").contains("name can't start with a number"));
        assert!(refused("ARG a=1").contains("no build stage"));
    }

    #[test]
    fn triggers_are_single_instructions() {
        assert!(parse_trigger("RUN a").is_ok());
        assert!(parse_trigger("RUN a\nRUN b").is_err() && parse_trigger("FROM a").is_err());
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "(FROM|RUN|COPY|ENV|ARG|LABEL|HEALTHCHECK|SHELL|#|\\\\|\\[|\"|'|=|--| |\n|[a-z]|\\$|<<EOF){0,60}") {
            let _ = Dockerfile::parse(&text);
        }
    }
}
