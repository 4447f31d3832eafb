//! What this host can and can't do, and how to mend it.
//!
//! Every check looks for itself and changes nothing; one that can't tell says so. They run with or
//! without a Coordinator.

mod bundle;
mod engines;
mod identity;
mod kernel;
mod room;
mod systems;

use serde::Serialize;

use crate::config::Config;

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Verdict {
    /// As it should be.
    Ok,
    /// Migrations work, with a restriction.
    Warn,
    /// Something needed is missing.
    Fail,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Check {
    /// What was looked at.
    pub(crate) name: &'static str,
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// What was found.
    pub(crate) detail: String,
    /// What would mend it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

impl Check {
    fn ok(name: &'static str, detail: impl Into<String>) -> Self {
        Self {
            name,
            verdict: Verdict::Ok,
            detail: detail.into(),
            remedy: None,
        }
    }

    fn warn(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let (detail, remedy) = (detail.into(), Some(remedy.into()));
        Self {
            name,
            verdict: Verdict::Warn,
            detail,
            remedy,
        }
    }

    fn fail(name: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Fail,
            ..Self::warn(name, detail, remedy)
        }
    }
}

/// All lines.
#[derive(Debug, Serialize)]
pub(crate) struct Findings {
    /// Whether nothing that is needed is missing.
    pub(crate) fit: bool,
    /// The lines.
    pub(crate) checks: Vec<Check>,
}

/// Looks at everything.
pub(crate) async fn examine(config: &Config) -> Findings {
    let mut checks = kernel::checks(config);
    checks.extend(bundle::checks(config));
    checks.extend(room::checks(config));
    checks.extend(identity::checks(config));
    checks.extend(engines::checks(config));
    checks.extend(systems::checks(config).await);
    Findings::of(checks)
}

impl Findings {
    fn of(checks: Vec<Check>) -> Self {
        let fit = checks.iter().all(|check| check.verdict != Verdict::Fail);
        Self { fit, checks }
    }
}

/// The lines for people.
pub(crate) fn show(findings: &Findings) -> String {
    let width = findings
        .checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for Check {
        name,
        verdict,
        detail,
        remedy,
    } in &findings.checks
    {
        let word = match verdict {
            Verdict::Ok => "ok",
            Verdict::Warn => "warn",
            Verdict::Fail => "FAIL",
        };
        text.push_str(&format!("{word:<4}  {name:<width$}  {detail}\n"));
        if let Some(remedy) = remedy {
            text.push_str(&format!("      {:width$}  remedy: {remedy}\n", ""));
        }
    }
    text.push_str(match findings.fit {
        true => "this host can run, send and receive services\n",
        false => "something that is needed is missing\n",
    });
    text
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn one_failure_makes_the_host_unfit_and_a_warning_does_not() {
        let ok = Check::ok("kernel", "6.1");
        let warn = Check::warn("pipes", "small", "enlarge them");
        assert!(Findings::of(vec![ok.clone(), warn.clone()]).fit);
        let findings = Findings::of(vec![ok, warn, Check::fail("criu", "absent", "install it")]);
        assert!(!findings.fit);
        let wanted = "ok    kernel  6.1\n\
                      warn  pipes   small\n              remedy: enlarge them\n\
                      FAIL  criu    absent\n              remedy: install it\n\
                      something that is needed is missing\n";
        assert_eq!(show(&findings), wanted);
    }
}
