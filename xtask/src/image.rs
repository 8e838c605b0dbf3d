//! `cargo xtask image`.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::build::build_podnet;
use crate::build_ebpf::build_ebpf;
use crate::setup::setup;
use crate::workspace;

/// Build a container image of podnet, without a container engine.
///
/// It is an archive in OCI's layout that holds the static release binary and nothing else: `ctr images
/// import`, `podman load`, `skopeo copy oci-archive:...` and `docker load` (25 or newer) read it. The
/// same binary always makes the same bytes.
#[derive(clap::Args)]
pub(crate) struct Image {
    /// What the image is called where it is imported.
    #[arg(long, default_value = concat!("localhost/podnet:", env!("CARGO_PKG_VERSION")))]
    name: String,
    /// Where to write the archive [default: target/podnet-image.tar].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

impl Image {
    pub(crate) fn run(self) -> Result<()> {
        setup(false)?;
        build_ebpf()?;
        let binary = build_podnet(true, true)?;
        let binary = fs::read(&binary).with_context(|| format!("cannot read {}", binary.display()))?;
        let archive = archive(&binary, &self.name)?;
        let path = self.output.unwrap_or_else(|| workspace::target().join("podnet-image.tar"));
        fs::write(&path, &archive).with_context(|| format!("cannot write {}", path.display()))?;
        eprintln!("built {} ({:.1} MB): image {}", path.display(), megabytes(archive.len()), self.name);
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "for people, with one decimal")]
fn megabytes(bytes: usize) -> f64 {
    bytes as f64 / 1e6
}

/// The name of this machine's architecture in Go's and so OCI's terms.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// An OCI archive of one layer with `binary` in it as `/podnet`.
fn archive(binary: &[u8], name: &str) -> Result<Vec<u8>> {
    let layer = tar(&[("podnet", 0o755, binary)])?;
    let config = Blob::json(&json!({
        "architecture": architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": {
            "Entrypoint": ["/podnet"],
            "Labels": {
                "org.opencontainers.image.title": "podnet",
                "org.opencontainers.image.description": "Kubernetes Services routed by eBPF programs",
                "org.opencontainers.image.licenses": "Apache-2.0 OR MIT",
                "org.opencontainers.image.version": env!("CARGO_PKG_VERSION"),
            },
        },
        "rootfs": { "type": "layers", "diff_ids": [digest(&layer)] },
        "history": [{ "created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask image" }],
    }))?;
    let layer = Blob::new(gzip(&layer)?);
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("application/vnd.oci.image.config.v1+json"),
        "layers": [layer.descriptor("application/vnd.oci.image.layer.v1.tar+gzip")],
    }))?;
    let mut entry = manifest.descriptor("application/vnd.oci.image.manifest.v1+json");
    entry["platform"] = json!({ "architecture": architecture(), "os": "linux" });
    entry["annotations"] = json!({
        // What skopeo and podman go by, and what containerd goes by.
        "org.opencontainers.image.ref.name": name,
        "io.containerd.image.name": name,
    });
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [entry],
    }))?;
    tar(&[
        ("oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#),
        ("index.json", 0o644, &index),
        (&manifest.path(), 0o644, &manifest.content),
        (&config.path(), 0o644, &config.content),
        (&layer.path(), 0o644, &layer.content),
    ])
}

/// A file that is named by its digest.
struct Blob {
    content: Vec<u8>,
    digest: String,
}

impl Blob {
    fn new(content: Vec<u8>) -> Self {
        Self { digest: digest(&content), content }
    }

    fn json(value: &Value) -> Result<Self> {
        Ok(Self::new(serde_json::to_vec(value)?))
    }

    fn path(&self) -> String {
        format!("blobs/{}", self.digest.replace(':', "/"))
    }

    fn descriptor(&self, media_type: &str) -> Value {
        json!({ "mediaType": media_type, "digest": self.digest, "size": self.content.len() })
    }
}

fn digest(content: &[u8]) -> String {
    let hash = Sha256::digest(content);
    hash.iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

fn gzip(content: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(content)?;
    Ok(encoder.finish()?)
}

/// A tar of files (path, mode, content), all of root and of 1970.
fn tar(files: &[(&str, u32, &[u8])]) -> Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    for (path, mode, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len().try_into()?);
        header.set_mode(*mode);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        tar.append_data(&mut header, path, *content)?;
    }
    Ok(tar.into_inner()?)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Read as _;

    use flate2::read::GzDecoder;

    use super::*;

    fn untar(archive: &[u8]) -> HashMap<String, Vec<u8>> {
        let mut files = HashMap::new();
        for entry in tar::Archive::new(archive).entries().unwrap() {
            let mut entry = entry.unwrap();
            assert_eq!(entry.header().mtime().unwrap(), 0);
            let mut content = Vec::new();
            entry.read_to_end(&mut content).unwrap();
            files.insert(entry.path().unwrap().to_str().unwrap().to_owned(), content);
        }
        files
    }

    /// The blob that `descriptor` names, after checking that it is what it should be.
    fn resolve<'a>(files: &'a HashMap<String, Vec<u8>>, descriptor: &Value) -> &'a [u8] {
        let named = descriptor["digest"].as_str().unwrap();
        let content = &files[&format!("blobs/{}", named.replace(':', "/"))];
        assert_eq!(digest(content), named);
        assert_eq!(descriptor["size"], content.len());
        content
    }

    #[test]
    fn leads_from_the_index_to_the_binary() {
        let files = untar(&archive(b"a program", "localhost/podnet:test").unwrap());
        let layout: Value = serde_json::from_slice(&files["oci-layout"]).unwrap();
        assert_eq!(layout["imageLayoutVersion"], "1.0.0");

        let index: Value = serde_json::from_slice(&files["index.json"]).unwrap();
        let entry = &index["manifests"][0];
        assert_eq!(entry["annotations"]["io.containerd.image.name"], "localhost/podnet:test");
        let manifest: Value = serde_json::from_slice(resolve(&files, entry)).unwrap();
        let config: Value = serde_json::from_slice(resolve(&files, &manifest["config"])).unwrap();
        assert_eq!(config["config"]["Entrypoint"], json!(["/podnet"]));

        let packed = resolve(&files, &manifest["layers"][0]);
        let mut layer = Vec::new();
        GzDecoder::new(packed).read_to_end(&mut layer).unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], json!([digest(&layer)]));
        assert_eq!(untar(&layer)["podnet"], b"a program");
        assert_eq!(files.len(), 5);
    }

    #[test]
    fn is_the_same_every_time() {
        let make = || archive(b"a program", "podnet").unwrap();
        assert_eq!(digest(&make()), digest(&make()));
    }

    #[test]
    fn knows_a_digest() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest(b""), empty);
    }
}
