//! What is built from Go modules: the programs of a real Kubernetes control plane, kube-proxy among them, and flannel.

use anyhow::{Context as _, Result};

use crate::go_module::{GoModule, Program};

/// What the tests use of Kubernetes. The module also has kubectl as a tool (`k8s.io/kubernetes/cmd/...`): a line
/// here builds it too.
pub(crate) const CONTROL_PLANE: GoModule = GoModule {
    name: "control-plane",
    programs: &[
        Program { name: "etcd", package: "go.etcd.io/etcd/server/v3" },
        Program { name: "kube-apiserver", package: "k8s.io/kubernetes/cmd/kube-apiserver" },
        Program { name: "kube-controller-manager", package: "k8s.io/kubernetes/cmd/kube-controller-manager" },
        Program { name: "kube-proxy", package: "k8s.io/kubernetes/cmd/kube-proxy" },
    ],
    cgo: false,
    linker_flags: stamped,
    variable: "PODNET_CONTROL_PLANE",
};

/// A module of its own: a new version of flannel does not have Kubernetes built anew. Its UDP backend, which no
/// test uses, is in C.
pub(crate) const FLANNEL: GoModule = GoModule {
    name: "flannel",
    programs: &[Program { name: "flanneld", package: "github.com/flannel-io/flannel" }],
    cgo: true,
    linker_flags: |_| Ok("-s -w".to_owned()),
    variable: "PODNET_FLANNEL",
};

/// The flags that stamp the version into the programs of Kubernetes: without it they take themselves for v0.0.0
/// and refuse much of what they should do.
fn stamped(go_mod: &str) -> Result<String> {
    let version =
        kubernetes_version(go_mod).context("k8s.io/kubernetes is not required at vMAJOR.MINOR.PATCH")?;
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

#[cfg(test)]
mod tests {
    use super::*;

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
