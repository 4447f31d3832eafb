//! What an engine is asked for a service that arrives: image, volumes, container, and its start.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use bollard::models::{ContainerCreateBody, VolumeCreateRequest};
use bollard::query_parameters::{
    CreateContainerOptions, CreateImageOptions, ListContainersOptions, ListImagesOptions,
};
use bytes::Bytes;
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use tokio::io::AsyncReadExt;
use tokio::process::{Child, Command};
use ums_checkpoint::keeper::placing::IMAGES_PATIENCE;
use ums_core::specification::{Creation, ImageId};

use crate::client::{Client, EngineError, failed, in_time, is_missing};

/// Label of an image that was received: its id by its content.
pub const IMAGE_LABEL: &str = "ums.image";
/// Label of a container and of volumes that were made for a service that arrived: by which migration.
pub const MIGRATION_LABEL: &str = "ums.migration";
/// All labels of ours begin so: they don't move on with a service.
pub const LABELS: &str = "ums.";
/// The runtime by which such a container is made, as `ums host install` registers it.
pub const RUNTIME: &str = "ums";

/// How much of an archive is handed over at once, bytes.
const CHUNK: usize = 256 * 1024;

impl Client {
    /// Why no service can arrive in a container of the engine; `None` when one can.
    pub async fn unready(&self) -> Result<Option<String>, EngineError> {
        let version = in_time(&self.socket, self.docker.version()).await?;
        let mut parts = version.components.unwrap_or_default().into_iter();
        if parts.any(|part| part.name.starts_with("Podman")) {
            // Its API of Docker's takes no runtime: the service would be started anew instead.
            return Ok(Some("services don't arrive in Podman yet".to_owned()));
        }
        let info = in_time(&self.socket, self.docker.info()).await?;
        let runtimes = info.runtimes.unwrap_or_default();
        let why = "it does not know the runtime that restores (`ums host install` there)";
        Ok((!runtimes.contains_key(RUNTIME)).then(|| why.to_owned()))
    }

    /// The image of this content, by a name that the engine knows: one that was received before, or the one that the
    /// container was made from at the engine that it comes from.
    pub async fn image(
        &self,
        id: &ImageId,
        creation: Option<&Creation>,
    ) -> Result<Option<String>, EngineError> {
        let label = format!("{IMAGE_LABEL}={}", id.as_str());
        let options = ListImagesOptions {
            filters: Some(HashMap::from([("label".to_owned(), vec![label])])),
            ..ListImagesOptions::default()
        };
        let received = in_time(&self.socket, self.docker.list_images(Some(options))).await?;
        if let Some(image) = received.into_iter().next() {
            return Ok(Some(image.id));
        }
        let Some(creation) = creation.filter(|creation| !creation.image_id.is_empty()) else {
            return Ok(None);
        };
        let wanted = format!("sha256:{}", creation.image_id);
        // By the name that people know, where that is the same image here.
        for name in [&creation.image, &wanted] {
            match in_time(&self.socket, self.docker.inspect_image(name)).await {
                Ok(image) if image.id.as_deref() == Some(&*wanted) => {
                    return Ok(Some(name.clone()));
                }
                Ok(_) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Makes an image of a root filesystem, under a name of ours; `tar` makes the archive.
    pub async fn import(
        &self,
        id: &ImageId,
        name: &str,
        rootfs: &Path,
        tar: &Path,
    ) -> Result<String, EngineError> {
        let archive = archive(rootfs, tar).map_err(|source| EngineError::Archive {
            path: rootfs.to_owned(),
            source,
        })?;
        let tag: String = id.as_str().chars().take(12).collect();
        let reference = format!("localhost/ums/{name}:{tag}");
        let options = CreateImageOptions {
            from_src: Some("-".to_owned()),
            repo: Some(format!("localhost/ums/{name}")),
            tag: Some(tag),
            changes: vec![format!("LABEL {IMAGE_LABEL}={}", id.as_str())],
            ..CreateImageOptions::default()
        };
        let docker = self.docker.clone().with_timeout(IMAGES_PATIENCE);
        let told =
            docker.create_image(Some(options), Some(bollard::body_try_stream(archive)), None);
        let done = told.try_for_each(|_| async { Ok(()) }).await;
        done.map_err(|source| failed(&self.socket, source))?;
        Ok(reference)
    }

    /// Makes a volume of this name; where it is on the host. One that is there is given as it is.
    pub async fn make_volume(&self, name: &str, migration: &str) -> Result<PathBuf, EngineError> {
        let labels = HashMap::from([(MIGRATION_LABEL.to_owned(), migration.to_owned())]);
        let request = VolumeCreateRequest {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..VolumeCreateRequest::default()
        };
        let made = in_time(&self.socket, self.docker.create_volume(request)).await?;
        Ok(made.mountpoint.into())
    }

    /// Whether there is a volume of this name.
    pub async fn has_volume(&self, name: &str) -> Result<bool, EngineError> {
        match in_time(&self.socket, self.docker.inspect_volume(name)).await {
            Ok(_) => Ok(true),
            Err(error) if is_missing(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a volume that was made for a migration; content when it is gone, or somebody else's.
    pub async fn remove_volume(&self, name: &str, migration: &str) -> Result<(), EngineError> {
        let is_ours = match in_time(&self.socket, self.docker.inspect_volume(name)).await {
            Ok(volume) => volume.labels.get(MIGRATION_LABEL).map(String::as_str) == Some(migration),
            Err(error) if is_missing(&error) => false,
            Err(error) => return Err(error),
        };
        if !is_ours {
            return Ok(());
        }
        let options: Option<bollard::query_parameters::RemoveVolumeOptions> = None;
        let asked = self.docker.remove_volume(name, options).await;
        match asked.map_err(|source| failed(&self.socket, source)) {
            Err(error) if is_missing(&error) => Ok(()),
            done => done,
        }
    }

    /// Makes a container that does not run; its id.
    pub async fn create(
        &self,
        name: &str,
        body: ContainerCreateBody,
    ) -> Result<String, EngineError> {
        let options = CreateContainerOptions {
            name: Some(name.to_owned()),
            ..CreateContainerOptions::default()
        };
        let asked = self.docker.create_container(Some(options), body).await;
        asked
            .map(|made| made.id)
            .map_err(|source| failed(&self.socket, source))
    }

    /// Containers that were made for a migration, whether they run or not.
    pub async fn made_for(&self, migration: &str) -> Result<Vec<String>, EngineError> {
        let label = format!("{MIGRATION_LABEL}={migration}");
        let options = ListContainersOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), vec![label])])),
            ..ListContainersOptions::default()
        };
        let listed = in_time(&self.socket, self.docker.list_containers(Some(options))).await?;
        Ok(listed.into_iter().filter_map(|it| it.id).collect())
    }

    /// Starts a container, however long its runtime waits for the service that arrives in it.
    pub async fn start(&self, id: &str) -> Result<(), EngineError> {
        let docker = self.docker.clone().with_timeout(IMAGES_PATIENCE);
        let options: Option<bollard::query_parameters::StartContainerOptions> = None;
        let started = docker.start_container(id, options).await;
        started.map_err(|source| failed(&self.socket, source))
    }
}

/// A root filesystem as an archive, with all that a file has.
fn archive(rootfs: &Path, tar: &Path) -> io::Result<BoxStream<'static, io::Result<Bytes>>> {
    let mut child = Command::new(tar)
        .args(["--numeric-owner", "--xattrs", "--xattrs-include=*", "-C"])
        .arg(rootfs)
        .args(["-cf", "-", "."])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let out = child.stdout.take();
    let out = out.ok_or_else(|| io::Error::other("tar has no output"))?;
    let chunks = stream::try_unfold((child, out), |(mut child, mut out)| async move {
        let mut chunk = Vec::with_capacity(CHUNK);
        match out.read_buf(&mut chunk).await? {
            0 => ended(&mut child).await.map(|()| None),
            _ => Ok(Some((Bytes::from(chunk), (child, out)))),
        }
    });
    Ok(chunks.boxed())
}

/// An archive that is not whole is not given for one.
async fn ended(tar: &mut Child) -> io::Result<()> {
    match tar.wait().await? {
        status if status.success() => Ok(()),
        status => Err(io::Error::other(format!("tar ended with {status}"))),
    }
}
