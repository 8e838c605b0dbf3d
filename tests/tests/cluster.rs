//! podnet against a real Kubernetes control plane.

use anyhow::{Context as _, Result};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::Api;
use tests::control_plane::ControlPlane;
use tests::lab::Lab;
use tests::require;
use tests::wait::{PATIENCE, until};

/// The control plane itself, without podnet: its controllers work.
#[test]
fn the_control_plane_starts() -> Result<()> {
    let (Some(()), Some(programs)) = (require::root(), require::control_plane()) else { return Ok(()) };
    let lab = Lab::without_podnet()?;
    let plane = ControlPlane::start(&lab, &programs)?;
    let admin = plane.admin()?;
    until("the controllers to make a ServiceAccount", PATIENCE, || {
        plane.run(&admin, async |client| {
            let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
            accounts.get("default").await.context("no ServiceAccount")
        })
    })?;
    Ok(())
}
