//! Errors of a configuration: every mistake with its place.
//!
//! Must not know: what the keys mean. Messages say what is allowed and quote names at most; a value may be a secret and is
//! never repeated.

use std::fmt;

/// One mistake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The path of the key such as `routes[2].upstream`, or the name of the variable; empty if neither is known.
    pub place: String,
    /// Line and column in the file, both from 1, columns in characters; none for variables.
    pub line: Option<(usize, usize)>,
    /// What is wrong and what is allowed.
    pub message: String,
}

/// The mistakes of an unusable configuration, in the order of the file. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file as messages name it.
    pub file: String,
    /// The mistakes.
    pub mistakes: Vec<Mistake>,
}

// === impl ConfigError ===

impl fmt::Display for ConfigError {
    /// One line per mistake, like a compiler: `file:line:column place: message`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, mistake) in self.mistakes.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            match mistake.line {
                Some((line, column)) if mistake.place.is_empty() => {
                    write!(f, "{}:{line}:{column}: ", self.file)?;
                }
                Some((line, column)) => write!(f, "{}:{line}:{column} {}: ", self.file, mistake.place)?,
                None if mistake.place.is_empty() => write!(f, "{}: ", self.file)?,
                None => write!(f, "{}: ", mistake.place)?,
            }
            f.write_str(&mistake.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
