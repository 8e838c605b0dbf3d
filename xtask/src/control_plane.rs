//! The programs of a real Kubernetes control plane, and kube-proxy, built from the Go module in
//! `tests/control-plane` into the tools folder.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};

use crate::process::{command, find, is_executable, output, run};
use crate::workspace;

/// A program of the control plane.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Component {
    /// The name of the program.
    pub(crate) name: &'static str,
    /// The Go package it is built from.
    package: &'static str,
}

/// What the tests use. The Go module also has kubectl as a tool (`k8s.io/kubernetes/cmd/...`): a line here
/// builds it too.
const COMPONENTS: [Component; 4] = [
    Component { name: "etcd", package: "go.etcd.io/etcd/server/v3" },
    Component { name: "kube-apiserver", package: "k8s.io/kubernetes/cmd/kube-apiserver" },
    Component { name: "kube-controller-manager", package: "k8s.io/kubernetes/cmd/kube-controller-manager" },
    Component { name: "kube-proxy", package: "k8s.io/kubernetes/cmd/kube-proxy" },
];

/// The first Go that fetches by itself the newer one that a module asks for.
const MINIMUM_GO: (u32, u32) = (1, 21);

/// The folder of the programs: another one whenever a version in the Go module changes.
pub(crate) fn folder() -> Result<PathBuf> {
    let mut hash = Sha256::new();
    for file in ["go.mod", "go.sum"] {
        let path = module().join(file);
        hash.update(fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?);
    }
    let hash: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    Ok(workspace::tools()?.join("control-plane").join(hash).join("bin"))
}

/// The programs that have not been built.
pub(crate) fn missing() -> Result<Vec<Component>> {
    let folder = folder()?;
    Ok(COMPONENTS.into_iter().filter(|component| !is_executable(&folder.join(component.name))).collect())
}

/// Builds `components`.
pub(crate) fn build(components: &[Component]) -> Result<()> {
    let go = find_go()?;
    let folder = folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let flags = linker_flags()?;
    for component in components {
        // A program appears under its name when it is whole, which serves as the stamp.
        let partial = folder.join(format!(".{}.partial", component.name));
        let mut build = command(&go);
        build.current_dir(module()).env("CGO_ENABLED", "0").env("GOTOOLCHAIN", "auto").env_remove("GOFLAGS");
        build.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]);
        run(build.arg(&partial).arg(component.package))?;
        let whole = folder.join(component.name);
        fs::rename(&partial, &whole).with_context(|| format!("cannot write {}", whole.display()))?;
    }
    Ok(())
}

fn module() -> PathBuf {
    workspace::root().join("tests/control-plane")
}

fn find_go() -> Result<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    let Some(go) = find("go").or_else(|| is_executable(&usual).then_some(usual)) else {
        bail!("building the control plane needs Go: {}", how_to_get_go());
    };
    let printed = output(command(&go).args(["env", "GOVERSION"]).env("GOTOOLCHAIN", "local"))?;
    match parse_go_version(&printed) {
        Some(version) if version >= MINIMUM_GO => Ok(go),
        _ => bail!("{} is {}, which is too old: {}", go.display(), printed.trim(), how_to_get_go()),
    }
}

fn how_to_get_go() -> String {
    let (major, minor) = MINIMUM_GO;
    format!(
        "install Go {major}.{minor} or newer (it fetches the version that the module asks for) and put it on PATH \
         or in /usr/local/go, or leave the cluster tests out with --without-cluster"
    )
}

/// Reads `go1.26.8` and the like.
fn parse_go_version(printed: &str) -> Option<(u32, u32)> {
    let mut numbers = printed.trim().strip_prefix("go")?.split('.');
    let minor = |text: &str| text.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok();
    Some((numbers.next()?.parse().ok()?, minor(numbers.next()?)?))
}

/// The flags that stamp the version into the programs: without it they take themselves for v0.0.0
/// and refuse much of what they should do.
fn linker_flags() -> Result<String> {
    let path = module().join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let version = kubernetes_version(&text).with_context(|| {
        format!("{} does not require k8s.io/kubernetes at vMAJOR.MINOR.PATCH", path.display())
    })?;
    Ok(stamp(version))
}

/// The version of Kubernetes that a `go.mod` requires, such as `v1.37.2`.
fn kubernetes_version(go_mod: &str) -> Option<&str> {
    let requirement = |line: &'_ str| -> bool {
        let line = line.trim_start();
        line.trim_start_matches("require").trim_start().starts_with("k8s.io/kubernetes v")
    };
    let line = go_mod.lines().find(|line| requirement(line))?;
    line.split_whitespace().find(|word| word.starts_with('v'))
}

fn stamp(version: &str) -> String {
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    let mut flags = "-s -w".to_owned();
    for package in ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"] {
        for (name, value) in
            [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor), ("gitTreeState", "clean")]
        {
            flags.push_str(&format!(" -X {package}.{name}={value}"));
        }
    }
    flags
}

/// The variable that tells tests where the programs are, if they have been built.
pub(crate) fn variable() -> Result<Option<(&'static str, OsString)>> {
    Ok(missing()?.is_empty().then_some(("PODNET_CONTROL_PLANE", folder()?.into())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_versions_of_go() {
        assert_eq!(parse_go_version("go1.26.8\n"), Some((1, 26)));
        assert_eq!(parse_go_version("go1.19"), Some((1, 19)));
        assert_eq!(parse_go_version("go1.27rc1"), Some((1, 27)));
        assert_eq!(parse_go_version("devel"), None);
    }

    #[test]
    fn finds_kubernetes_in_either_form_of_a_requirement() {
        assert_eq!(
            kubernetes_version("module m\nrequire k8s.io/kubernetes v1.37.2 // indirect\n"),
            Some("v1.37.2")
        );
        assert_eq!(kubernetes_version("require (\n\tk8s.io/kubernetes v1.2.3\n)\n"), Some("v1.2.3"));
        assert_eq!(kubernetes_version("require k8s.io/api v0.37.2\n"), None);
    }

    #[test]
    fn stamps_both_packages() {
        let flags = stamp("v1.37.2");
        assert!(flags.contains("-X k8s.io/component-base/version.gitVersion=v1.37.2"));
        assert!(flags.contains("-X k8s.io/client-go/pkg/version.gitMinor=37"));
    }
}
