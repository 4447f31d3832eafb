//! What a registry answers to who has not said who they are (RFC 9110, section 11.6.1).

use std::collections::BTreeMap;

/// A challenge: its scheme in lower case, and its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Challenge {
    pub(super) scheme: String,
    pub(super) parameters: BTreeMap<String, String>,
}

/// The longest challenge that is read, bytes.
const LEN_MAX: usize = 8192;

impl Challenge {
    /// Reads one challenge with `NAME="VALUE"` parameters.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.len() > LEN_MAX {
            return None;
        }
        let text = text.trim();
        let (scheme, mut rest) = text.split_once(' ').unwrap_or((text, ""));
        let mut parameters = BTreeMap::new();
        while let Some((name, behind)) = rest.split_once('=') {
            let name = name.trim_matches([' ', ',']).to_ascii_lowercase();
            let (value, behind) = value(behind)?;
            parameters.insert(name, value);
            rest = behind;
        }
        Some(Self {
            scheme: scheme.to_ascii_lowercase(),
            parameters,
        })
    }

    /// Where a token is had: the realm, with the service, and the scope asked for unless the registry names one.
    pub(super) fn token_url(&self, scope: &str) -> Option<String> {
        let realm = self.parameters.get("realm")?;
        let mut url = realm.clone();
        let mut add = |name: &str, value: &str| {
            url.push(if url.contains('?') { '&' } else { '?' });
            url.push_str(&format!("{name}={}", escaped(value)));
        };
        if let Some(service) = self.parameters.get("service") {
            add("service", service);
        }
        add("scope", scope);
        Some(url)
    }
}

/// A quoted string or a token, and what is behind it.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.trim_start().strip_prefix('"') else {
        let (value, rest) = text.split_once(',').unwrap_or((text, ""));
        return Some((value.trim().to_owned(), rest));
    };
    let mut value = String::new();
    let mut letters = quoted.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &quoted[at + 1..])),
            '\\' => value.push(letters.next()?.1),
            letter => value.push(letter),
        }
    }
    None
}

/// For a query (RFC 3986, section 2).
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~:/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
    }
    escaped
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn challenges_are_read() {
        let text =
            r#"Bearer realm="https://auth.example/token",service="registry, one",scope="x \"y\"""#;
        let challenge = Challenge::parse(text).unwrap();
        assert_eq!(challenge.scheme, "bearer");
        assert_eq!(challenge.parameters["service"], "registry, one");
        assert_eq!(challenge.parameters["scope"], "x \"y\"");
        assert_eq!(
            challenge.token_url("repository:a/b:pull,push").unwrap(),
            "https://auth.example/token?service=registry%2C%20one&scope=repository:a/b:pull%2Cpush"
        );
        let basic = Challenge::parse("Basic realm=registry").unwrap();
        assert_eq!(
            (&*basic.scheme, &*basic.parameters["realm"]),
            ("basic", "registry")
        );
        assert_eq!(Challenge::parse("Negotiate").unwrap().parameters.len(), 0);
        assert_eq!(Challenge::parse(r#"Bearer realm="cut off"#), None);
    }
}
