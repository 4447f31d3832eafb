//! The JSON documents of an image (OCI image specification: `descriptor.md`, `image-index.md`, `manifest.md`,
//! `config.md`; Docker's `manifest v2 schema 2`, which has the same fields).

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::digest::Digest;
use crate::error::Error;

/// Media types.
pub mod media {
    /// OCI index.
    pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
    /// OCI manifest.
    pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI configuration.
    pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
    /// Layer, uncompressed.
    pub const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
    /// Layer, by gzip.
    pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    /// Layer, by zstd.
    pub const LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
    /// Docker's index.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// Docker's manifest.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

    /// The OCI name of a layer's media type; `None` of one that is no layer of files which an image brings.
    pub fn oci_layer(media_type: &str) -> Option<&'static str> {
        match media_type {
            LAYER | "application/vnd.docker.image.rootfs.diff.tar" => Some(LAYER),
            LAYER_GZIP | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Some(LAYER_GZIP),
            LAYER_ZSTD | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(LAYER_ZSTD),
            _ => None,
        }
    }
}

/// Names content by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What it is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
    /// In an index: what it runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// What an image runs on, in Go's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    /// Architecture, such as `amd64`.
    pub architecture: String,
    /// Operating system.
    pub os: String,
    /// Variant of the architecture, such as `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self {
            architecture: architecture.to_owned(),
            os: "linux".to_owned(),
            variant: None,
        }
    }

    /// Whether what is made for `other` runs on this.
    pub fn runs(&self, other: &Self) -> bool {
        // Each arm64 is v8; of amd64 only the first level runs everywhere.
        let variant = matches!(other.variant.as_deref(), None | Some("" | "v8" | "v1"));
        self.architecture == other.architecture && self.os == other.os && variant
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}/{}", self.os, self.architecture)?;
        match &self.variant {
            Some(variant) => write!(out, "/{variant}"),
            None => Ok(()),
        }
    }
}

/// An index: images for several platforms, or of several names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// Images, or indexes.
    #[serde(deserialize_with = "or_default")]
    pub manifests: Vec<Descriptor>,
}

/// A manifest: configuration and layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// Layers, the lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub layers: Vec<Descriptor>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[serde(deserialize_with = "or_default")]
    pub annotations: BTreeMap<String, String>,
}

/// A configuration, as far as something here reads it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Config {
    /// What it runs on.
    #[serde(flatten)]
    pub platform: Platform,
    /// How it is run.
    #[serde(default, deserialize_with = "or_default")]
    pub config: Run,
    /// What its root filesystem is made of.
    pub rootfs: RootFs,
}

/// The layers of a root filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RootFs {
    /// Digests of the uncompressed layers, the lowest first.
    #[serde(default, deserialize_with = "or_default")]
    pub diff_ids: Vec<Digest>,
}

/// How an image is run.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Run {
    /// `USER[:GROUP]`, names or numbers.
    #[serde(deserialize_with = "or_default")]
    pub user: String,
    /// `PORT[/PROTOCOL]`.
    #[serde(deserialize_with = "or_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    /// `NAME=value` each.
    #[serde(deserialize_with = "or_default")]
    pub env: Vec<String>,
    /// What is run.
    #[serde(deserialize_with = "or_default")]
    pub entrypoint: Vec<String>,
    /// Its arguments, unless others are given.
    #[serde(deserialize_with = "or_default")]
    pub cmd: Vec<String>,
    /// Directories whose content outlives a container.
    #[serde(deserialize_with = "or_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    /// Working directory.
    #[serde(deserialize_with = "or_default")]
    pub working_dir: String,
    /// Labels.
    #[serde(deserialize_with = "or_default")]
    pub labels: BTreeMap<String, String>,
    /// The signal that stops it.
    pub stop_signal: Option<String>,
    /// How its health is checked (Docker's, not in the OCI specification).
    pub healthcheck: Option<Healthcheck>,
}

/// How an image's health is checked, times in nanoseconds.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Healthcheck {
    /// What is run.
    #[serde(deserialize_with = "or_default")]
    pub test: Vec<String>,
    /// Time between two checks.
    pub interval: i64,
    /// How long one may take.
    pub timeout: i64,
    /// Time at the beginning in which failures don't count.
    pub start_period: i64,
    /// Failures after which it is unhealthy.
    pub retries: i64,
}

impl Run {
    /// The arguments of `healthcheck`, unless it is none or turned off.
    pub fn health(&self) -> Option<&Healthcheck> {
        let on = |check: &&Healthcheck| {
            !matches!(check.test.first().map(String::as_str), None | Some("NONE"))
        };
        self.healthcheck.as_ref().filter(on)
    }
}

/// Reads a document; `what` names it.
///
/// # Errors
/// When it is no such document.
pub fn parse<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::malformed(what, error.to_string()))
}

/// What Go writes as `null` is empty.
fn or_default<'de, T, D>(input: D) -> Result<T, D::Error>
where
    T: Default + Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Option::<T>::deserialize(input)?.unwrap_or_default())
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn what_docker_writes_is_read() {
        let json = r#"{"architecture":"amd64","os":"linux","created":"2024-01-01T00:00:00Z",
            "config":{"Env":["PATH=/bin"],"Cmd":["sh"],"Entrypoint":null,"Labels":null,"Image":"x",
            "ExposedPorts":{"80/tcp":{}},"Healthcheck":{"Test":["CMD","true"],"Interval":5000000000}},
            "rootfs":{"type":"layers","diff_ids":null},"history":[]}"#;
        let config: Config = parse("it", json.as_bytes()).unwrap();
        assert_eq!(config.config.cmd, ["sh"]);
        assert_eq!(config.config.health().unwrap().interval, 5_000_000_000);
        assert!(Platform::here().os == "linux");
        let none: Config = parse(
            "it",
            br#"{"architecture":"a","os":"b","config":null,"rootfs":{}}"#,
        )
        .unwrap();
        assert_eq!(none.config, Run::default());
    }
}
