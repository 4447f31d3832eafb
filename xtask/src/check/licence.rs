//! SPDX licence expressions: does a crate's licence leave us a choice that the policy allows?

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

/// Deepest nesting of parentheses; real expressions have two.
const DEPTH: usize = 16;

/// Whether an expression can be met with allowed licences alone.
///
/// `A WITH e` is met by `A` (an exception only permits more) or by the pair being allowed;
/// a slash, as old manifests write it, means OR.
///
/// # Errors
/// The expression is not one.
pub(crate) fn is_met(expression: &str, allowed: &BTreeSet<String>) -> Result<bool> {
    let spaced = expression
        .replace('(', " ( ")
        .replace(')', " ) ")
        .replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser {
        words: &words,
        at: 0,
        allowed,
    };
    let met = parser.any(0)?;
    ensure!(
        parser.at == words.len(),
        "unexpected {:?} in licence {expression:?}",
        words[parser.at]
    );
    Ok(met)
}

struct Parser<'a> {
    words: &'a [&'a str],
    at: usize,
    allowed: &'a BTreeSet<String>,
}

impl<'a> Parser<'a> {
    fn any(&mut self, depth: usize) -> Result<bool> {
        let mut met = self.all(depth)?;
        while self.accept("OR") {
            met |= self.all(depth)?;
        }
        Ok(met)
    }

    fn all(&mut self, depth: usize) -> Result<bool> {
        let mut met = self.one(depth)?;
        while self.accept("AND") {
            met &= self.one(depth)?;
        }
        Ok(met)
    }

    fn one(&mut self, depth: usize) -> Result<bool> {
        ensure!(depth < DEPTH, "a licence expression is nested too deep");
        if self.accept("(") {
            let met = self.any(depth + 1)?;
            ensure!(
                self.accept(")"),
                "a licence expression lacks a closing parenthesis"
            );
            return Ok(met);
        }
        let name = self.word()?;
        let mut met = self.allowed.contains(name);
        if self.accept("WITH") {
            let exception = self.word()?;
            met |= self.allowed.contains(&format!("{name} WITH {exception}"));
        }
        Ok(met)
    }

    fn word(&mut self) -> Result<&'a str> {
        match self.words.get(self.at) {
            Some(word) if !["AND", "OR", "WITH", "(", ")"].contains(word) => {
                self.at += 1;
                Ok(word)
            }
            other => bail!("a licence expression has {other:?} where a licence belongs"),
        }
    }

    fn accept(&mut self, word: &str) -> bool {
        let is_next = self.words.get(self.at) == Some(&word);
        self.at += usize::from(is_next);
        is_next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn met(expression: &str) -> Result<bool> {
        let allowed = ["MIT", "Apache-2.0", "Zlib"].map(str::to_owned).into();
        is_met(expression, &allowed)
    }

    #[test]
    fn or_needs_one_and_needs_all() -> Result<()> {
        assert!(met("MIT")?);
        assert!(!met("GPL-3.0")?);
        assert!(met("GPL-3.0 OR MIT")?);
        assert!(met("Unlicense/MIT")?);
        assert!(!met("MIT AND GPL-3.0")?);
        assert!(met("(MIT OR GPL-3.0) AND Zlib")?);
        // AND binds closer than OR.
        assert!(met("MIT OR GPL-3.0 AND GPL-2.0")?);
        assert!(met("Apache-2.0 WITH LLVM-exception")?);
        assert!(!met("GPL-2.0 WITH Classpath-exception-2.0")?);
        Ok(())
    }

    #[test]
    fn nonsense_is_an_error() {
        for text in ["", "MIT OR", "MIT Zlib", "(MIT", "AND", "MIT WITH"] {
            assert!(met(text).is_err(), "{text}");
        }
        assert!(met(&"(".repeat(100)).is_err());
    }
}
