//! Requests to one registry.

use std::cell::RefCell;
use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::{Response, StatusCode};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body, RequestBuilder, SendBody};

use super::challenge::{Challenge, escaped};
use super::{Access, Login};
use crate::document::Descriptor;
use crate::error::{Error, shown};
use crate::limits::DOCUMENT_BYTES_MAX;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// The longest transfer of one layer: longer than anybody waits for it.
const BODY_TIME_MAX: Duration = Duration::from_secs(3600);
/// Layers are often kept elsewhere, behind one redirection.
const REDIRECTS_MAX: u32 = 5;
/// The largest answer that is read to tell what is wrong, bytes.
const COMPLAINT_BYTES_MAX: u64 = 64 << 10;

pub(super) struct Client {
    agent: Agent,
    /// For messages.
    host: String,
    /// Scheme and authority.
    base: String,
    login: Option<Login>,
    /// What was last accepted as `Authorization`, and for which scope.
    authorization: RefCell<Option<(String, String)>>,
}

type Answer = Response<Body>;

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Complaints {
    errors: Vec<Complaint>,
}

#[derive(Deserialize)]
struct Complaint {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Client {
    pub(super) fn new(host: &str, access: &Access) -> Result<Self, Error> {
        let authority = match host {
            "docker.io" => "registry-1.docker.io",
            other => other,
        };
        let local = is_loopback(authority);
        let client = |plain: bool| -> Result<Self, Error> {
            let scheme = if plain { "http" } else { "https" };
            Ok(Self {
                agent: agent(plain, local)?,
                host: host.to_owned(),
                base: format!("{scheme}://{authority}"),
                login: access.login.clone(),
                authorization: RefCell::default(),
            })
        };
        if access.plain_http {
            return client(true);
        }
        let encrypted = client(false)?;
        // On this machine there is nobody between: what has no TLS is spoken to without it.
        if local
            && encrypted
                .agent
                .get(format!("{}/v2/", encrypted.base))
                .call()
                .is_err()
        {
            return client(true);
        }
        Ok(encrypted)
    }

    /// Sends a request, and once more when the registry wants to know who asks.
    fn send(
        &self,
        scope: &str,
        send: &mut dyn FnMut(Option<&str>) -> Result<Answer, ureq::Error>,
    ) -> Result<Answer, Error> {
        let kept = self.authorization.borrow().clone();
        let kept = kept
            .filter(|(known, _)| known == scope)
            .map(|(_, value)| value);
        let answer = send(kept.as_deref()).map_err(|error| self.failed(&error))?;
        if answer.status() != StatusCode::UNAUTHORIZED {
            return Ok(answer);
        }
        let authorization = self.authorize(&answer, scope)?;
        let answer = send(Some(&authorization)).map_err(|error| self.failed(&error))?;
        *self.authorization.borrow_mut() = Some((scope.to_owned(), authorization));
        Ok(answer)
    }

    fn authorize(&self, answer: &Answer, scope: &str) -> Result<String, Error> {
        let header = answer.headers().get("www-authenticate");
        let header = header.and_then(|value| value.to_str().ok());
        let challenge = header.and_then(Challenge::parse);
        let challenge = challenge.ok_or_else(|| self.refused("it does not say how to log in"))?;
        match (challenge.scheme.as_str(), &self.login) {
            ("basic", Some(login)) => Ok(login.basic()),
            ("basic", None) => {
                Err(self.refused("it wants a user and password: `docker login` first"))
            }
            ("bearer", _) => self.token(&challenge, scope),
            (other, _) => {
                Err(self.refused(&format!("it wants to be asked by `{other}`, unknown here")))
            }
        }
    }

    fn token(&self, challenge: &Challenge, scope: &str) -> Result<String, Error> {
        let url = challenge.token_url(scope);
        let url = url.ok_or_else(|| self.refused("it does not say where tokens are had"))?;
        let mut request = self.agent.get(url);
        if let Some(login) = &self.login {
            request = request.header("authorization", login.basic());
        }
        let answer = request.call().map_err(|error| self.failed(&error))?;
        let mut answer = self.accepted(answer, "log in")?;
        let bytes = read(&mut answer, DOCUMENT_BYTES_MAX).map_err(|error| self.failed(&error))?;
        let token: Token = crate::document::parse("the registry's token", &bytes)?;
        let token = token.token.or(token.access_token);
        let token = token.ok_or_else(|| self.refused("its answer has no token"))?;
        Ok(format!("Bearer {token}"))
    }

    /// A document, and its media type.
    pub(super) fn document(
        &self,
        path: &str,
        accept: &[&str],
        scope: &str,
    ) -> Result<(String, Vec<u8>), Error> {
        let url = format!("{}{path}", self.base);
        let answer = self.send(scope, &mut |authorization| {
            let request = self.agent.get(&url).header("accept", accept.join(", "));
            with(request, authorization).call()
        })?;
        let mut answer = self.accepted(answer, &format!("send {path}"))?;
        let media_type = answer.headers().get("content-type");
        let media_type = media_type
            .and_then(|it| it.to_str().ok())
            .unwrap_or_default();
        let media_type = media_type
            .split(';')
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        let bytes = read(&mut answer, DOCUMENT_BYTES_MAX).map_err(|error| self.failed(&error))?;
        Ok((media_type, bytes))
    }

    /// Content, to be read.
    pub(super) fn blob(&self, path: &str, scope: &str) -> Result<Box<dyn Read + 'static>, Error> {
        let url = format!("{}{path}", self.base);
        let answer = self.send(scope, &mut |authorization| {
            with(self.agent.get(&url), authorization).call()
        })?;
        let answer = self.accepted(answer, &format!("send {path}"))?;
        // Its reader compares it with what it should have.
        let body = answer.into_body().into_with_config().limit(u64::MAX);
        Ok(Box::new(body.reader()))
    }

    pub(super) fn exists(&self, path: &str, scope: &str) -> Result<bool, Error> {
        let url = format!("{}{path}", self.base);
        let answer = self.send(scope, &mut |authorization| {
            with(self.agent.head(&url), authorization).call()
        })?;
        Ok(answer.status() == StatusCode::OK)
    }

    /// Sends content: begins an upload, and puts all of it there at once.
    pub(super) fn upload(
        &self,
        path: &str,
        scope: &str,
        descriptor: &Descriptor,
        content: &mut dyn Read,
    ) -> Result<(), Error> {
        let url = format!("{}{path}", self.base);
        let answer = self.send(scope, &mut |authorization| {
            with(self.agent.post(&url), authorization).send_empty()
        })?;
        let answer = self.accepted(answer, "take a layer")?;
        let location = answer.headers().get("location");
        let location = location.and_then(|it| it.to_str().ok());
        let location =
            location.ok_or_else(|| self.refused("it does not say where a layer is to go"))?;
        let at = match location.starts_with('/') {
            true => format!("{}{location}", self.base),
            false => location.to_owned(),
        };
        let sign = if at.contains('?') { '&' } else { '?' };
        let at = format!(
            "{at}{sign}digest={}",
            escaped(&descriptor.digest.to_string())
        );
        let mut request = self.agent.put(&at);
        let own = at
            .strip_prefix(&self.base)
            .is_some_and(|rest| rest.starts_with('/'));
        if let Some((_, authorization)) = &*self.authorization.borrow()
            && own
        {
            request = request.header("authorization", authorization);
        }
        let mut content = content;
        let answer = request
            .header("content-type", "application/octet-stream")
            .header("content-length", descriptor.size.to_string())
            .send(SendBody::from_reader(&mut content))
            .map_err(|error| self.failed(&error))?;
        self.accepted(answer, "take a layer").map(drop)
    }

    pub(super) fn put_document(
        &self,
        path: &str,
        scope: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let url = format!("{}{path}", self.base);
        let answer = self.send(scope, &mut |authorization| {
            let request = self.agent.put(&url).header("content-type", media_type);
            with(request, authorization).send(bytes)
        })?;
        self.accepted(answer, "take the manifest").map(drop)
    }

    /// An answer that is what was asked for.
    fn accepted(&self, mut answer: Answer, what: &str) -> Result<Answer, Error> {
        let status = answer.status();
        if status.is_success() {
            return Ok(answer);
        }
        let bytes = read(&mut answer, COMPLAINT_BYTES_MAX).unwrap_or_default();
        let complaints = serde_json::from_slice::<Complaints>(&bytes).ok();
        let complaint = complaints.and_then(|it| it.errors.into_iter().next());
        let said = match complaint {
            Some(it) => format!(
                "{} ({})",
                shown(it.message.as_bytes()),
                shown(it.code.as_bytes())
            ),
            None => status.to_string(),
        };
        let remedy = match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if self.login.is_none() => {
                "; nobody is logged in there (`docker login`; what a credential helper keeps is not asked for)"
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                "; who is logged in may not do that"
            }
            _ => "",
        };
        Err(self.refused(&format!("it does not {what}: {said}{remedy}")))
    }

    fn refused(&self, detail: &str) -> Error {
        Error::Registry {
            host: self.host.clone(),
            detail: detail.to_owned(),
        }
    }

    fn failed(&self, error: &ureq::Error) -> Error {
        let remedy = match error {
            ureq::Error::RequireHttpsOnly(_) => {
                "; what is not encrypted is used on demand only (`--plain-http`)"
            }
            _ => "",
        };
        self.refused(&format!("{error}{remedy}"))
    }
}

fn with<B>(request: RequestBuilder<B>, authorization: Option<&str>) -> RequestBuilder<B> {
    match authorization {
        Some(value) => request.header("authorization", value),
        None => request,
    }
}

fn read(answer: &mut Answer, limit: u64) -> Result<Vec<u8>, ureq::Error> {
    answer.body_mut().with_config().limit(limit).read_to_vec()
}

fn agent(plain: bool, local: bool) -> Result<Agent, Error> {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(!plain)
        .max_redirects(REDIRECTS_MAX)
        // Where layers are kept is somebody else's as a rule.
        .redirect_auth_headers(RedirectAuthHeaders::Never)
        .user_agent(concat!("ums/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT_TIME_MAX))
        .timeout_recv_response(Some(ANSWER_TIME_MAX))
        .timeout_recv_body(Some(BODY_TIME_MAX))
        .timeout_send_body(Some(BODY_TIME_MAX));
    if local {
        config = config.proxy(None);
    }
    if !plain {
        config = config.tls_config(tls()?);
    }
    Ok(config.build().into())
}

/// The authorities that this machine trusts: those of its administrator, too.
fn tls() -> Result<TlsConfig, Error> {
    let loaded = rustls_native_certs::load_native_certs();
    if loaded.certs.is_empty() {
        let errors: Vec<_> = loaded.errors.iter().map(ToString::to_string).collect();
        let error = io::Error::other(errors.join("; "));
        let place = "the certificates of this machine (is `ca-certificates` installed?)";
        return Err(Error::at("read", place)(error));
    }
    let certificates = loaded.certs.iter();
    let certificates = certificates.map(|it| Certificate::from_der(it).to_owned());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&certificates.collect::<Vec<_>>()))
        .unversioned_rustls_crypto_provider(provider)
        .build())
}

fn is_loopback(authority: &str) -> bool {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => authority,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|it| it.is_loopback())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn only_this_machine_is_local() {
        for local in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "[::1]:5000",
            "127.1.2.3",
        ] {
            assert!(is_loopback(local), "{local}");
        }
        for other in [
            "localhost.example",
            "127.0.0.1.example:1",
            "10.0.0.1",
            "[fe80::1]:5",
        ] {
            assert!(!is_loopback(other), "{other}");
        }
    }
}
