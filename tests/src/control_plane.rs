//! A real control plane: etcd, kube-apiserver and kube-controller-manager.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use http::Request;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};

use crate::lab::Lab;
use crate::node::Node;
use crate::pki::{Authority, Identity};
use crate::pod::Outside;
use crate::process::Process;
use crate::wait::until;

/// The last number of the control plane's address in the network of the nodes.
const LAST: u8 = 250;
const API_PORT: u16 = 6443;
const ETCD: &str = "http://127.0.0.1:2379";
/// Starting the programs takes seconds on a quiet machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// A running control plane, in a namespace that all nodes reach.
pub struct ControlPlane {
    machine: Outside,
    programs: PathBuf,
    folder: PathBuf,
    logs: PathBuf,
    authority: Authority,
    service_accounts: (PathBuf, PathBuf),
    api_server: Option<Process>,
    _etcd: Process,
    controllers: Option<Process>,
}

impl ControlPlane {
    /// Starts a control plane from the programs in `programs`, and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start(lab: &Lab, programs: &Path) -> Result<Self> {
        let mut plane = Self::without_controllers(lab, programs)?;
        plane.start_controllers()?;
        Ok(plane)
    }

    /// The same without controllers: nothing is in the API but what is put there.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn without_controllers(lab: &Lab, programs: &Path) -> Result<Self> {
        let machine = Outside::create(lab, "control-plane", LAST, None)?;
        let folder = lab.folder("control-plane")?;
        let logs = lab.folder("logs")?;
        let authority = Authority::create(&folder)?;
        let service_accounts = authority.keys("service-accounts")?;
        let mut etcd = machine.place().command(programs.join("etcd"))?;
        etcd.arg("--data-dir").arg(folder.join("etcd")).arg("--unsafe-no-fsync");
        etcd.args(["--listen-client-urls", ETCD, "--advertise-client-urls", ETCD]);
        let etcd = Process::start("etcd", etcd, &logs.join("etcd.log"))?;
        let mut plane = Self {
            machine,
            programs: programs.to_owned(),
            folder,
            logs,
            authority,
            service_accounts,
            api_server: None,
            _etcd: etcd,
            controllers: None,
        };
        plane.start_api_server()?;
        Ok(plane)
    }

    /// Makes the API server reachable for a node of another lab, by a link of its own with this number; returns
    /// the address that the node has there.
    ///
    /// # Errors
    /// If the link cannot be made.
    pub fn link(&self, node: &Node, number: u8) -> Result<Ipv4Addr> {
        let [here, there] = [1, 2].map(|last| Ipv4Addr::new(192, 168, number, last));
        let netns = &node.place().netns;
        self.machine.place().netns.batch(&format!(
            "link add link{number} type veth peer name control netns {}\n\
             addr add {here}/30 dev link{number}\n\
             link set link{number} up",
            netns.name()
        ))?;
        netns.batch(&format!(
            "addr add {there}/30 dev control\n\
             link set control up\n\
             route add {}/32 via {here}",
            self.machine.v4()
        ))?;
        Ok(there)
    }

    /// Kills the API server.
    ///
    /// # Errors
    /// If that fails.
    pub fn kill_api_server(&mut self) -> Result<()> {
        match &mut self.api_server {
            Some(process) => process.kill()?,
            None => bail!("there is no API server"),
        }
        self.api_server = None;
        Ok(())
    }

    /// Starts the API server and waits until it is ready.
    ///
    /// # Errors
    /// If it does not get ready.
    pub fn start_api_server(&mut self) -> Result<()> {
        let address = IpAddr::from(self.machine.v4());
        let first_service = IpAddr::from(Ipv4Addr::new(10, 96, 0, 1));
        let identity = self.authority.server("api-server", &[address, first_service])?;
        let (private, public) = &self.service_accounts;
        let mut command = self.machine.place().command(self.programs.join("kube-apiserver"))?;
        command.args(["--etcd-servers", ETCD, "--authorization-mode", "Node,RBAC"]);
        command.args(["--service-cluster-ip-range", "10.96.0.0/16,fd00:10:96::/108"]);
        command.args(["--endpoint-reconciler-type", "none", "--allow-privileged"]);
        command.args(["--service-account-issuer", "https://kubernetes.default.svc"]);
        command.args(["--bind-address", &address.to_string(), "--advertise-address", &address.to_string()]);
        command.args(["--secure-port", &API_PORT.to_string(), "--profiling=false"]);
        command.arg("--client-ca-file").arg(self.authority.certificate());
        command.arg("--tls-cert-file").arg(&identity.certificate);
        command.arg("--tls-private-key-file").arg(&identity.key);
        command.arg("--service-account-key-file").arg(public);
        command.arg("--service-account-signing-key-file").arg(private);
        command.arg("--cert-dir").arg(self.folder.join("api-server"));
        let mut process = Process::start("kube-apiserver", command, &self.logs.join("kube-apiserver.log"))?;
        let admin = self.admin()?;
        let ready = until("the API server to get ready", PATIENCE, || {
            if let Some(status) = process.ended()? {
                return Ok(Err(anyhow!("the API server has ended, {status}")));
            }
            self.run(&admin, async |client| {
                let answer = client.request_text(Request::get("/readyz").body(Vec::new())?).await?;
                if answer == "ok" { Ok(Ok(())) } else { bail!("the API server says {answer}") }
            })
        });
        ready.and_then(|ended| ended).with_context(|| process.last_words())?;
        self.api_server = Some(process);
        Ok(())
    }

    fn start_controllers(&mut self) -> Result<()> {
        let kubeconfig = self.kubeconfig_of_user("controllers", "system:kube-controller-manager")?;
        let mut command = self.machine.place().command(self.programs.join("kube-controller-manager"))?;
        command.arg("--kubeconfig").arg(&kubeconfig).args(["--leader-elect=false", "--secure-port=0"]);
        command.args([
            "--use-service-account-credentials",
            "--controllers=*,-nodelifecycle,-node-ipam-controller",
        ]);
        command.arg("--service-account-private-key-file").arg(&self.service_accounts.0);
        command.arg("--root-ca-file").arg(self.authority.certificate());
        let log = self.logs.join("kube-controller-manager.log");
        self.controllers = Some(Process::start("kube-controller-manager", command, &log)?);
        Ok(())
    }

    /// A kubeconfig of a user that may do everything.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn admin(&self) -> Result<PathBuf> {
        let identity = self.authority.client("admin", "admin", Some("system:masters"))?;
        self.kubeconfig_of("admin", &Credential::Certificate(identity))
    }

    /// A kubeconfig with a token.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn kubeconfig_with_token(&self, name: &str, token: &str) -> Result<PathBuf> {
        self.kubeconfig_of(name, &Credential::Token(token.to_owned()))
    }

    /// A kubeconfig of a user that the API server knows by a certificate.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn kubeconfig_of_user(&self, name: &str, user: &str) -> Result<PathBuf> {
        let identity = self.authority.client(name, user, None)?;
        self.kubeconfig_of(name, &Credential::Certificate(identity))
    }

    fn kubeconfig_of(&self, name: &str, credential: &Credential) -> Result<PathBuf> {
        let user = match credential {
            Credential::Certificate(Identity { certificate, key }) => {
                format!("client-certificate: {}\n    client-key: {}", certificate.display(), key.display())
            }
            Credential::Token(token) => format!("token: {token}"),
        };
        let (authority, endpoint) = (self.authority.certificate(), self.endpoint());
        let path = self.folder.join(format!("{name}.kubeconfig"));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: lab\nclusters:\n- name: lab\n  cluster:\n    \
             server: https://{endpoint}\n    certificate-authority: {}\nusers:\n- name: lab\n  user:\n    {user}\n\
             contexts:\n- name: lab\n  context: {{cluster: lab, user: lab}}\n",
            authority.display()
        );
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    fn endpoint(&self) -> SocketAddr {
        (self.machine.v4(), API_PORT).into()
    }

    /// Talks to the API server as the user of a kubeconfig.
    ///
    /// # Errors
    /// Those of `talk`.
    pub fn run<T: Send>(
        &self,
        kubeconfig: &Path,
        talk: impl AsyncFnOnce(Client) -> Result<T> + Send,
    ) -> Result<T> {
        // A runtime of one thread, so that all its sockets belong to the namespace of that thread.
        self.machine.place().netns.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
                let config =
                    kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
                talk(Client::try_from(config)?).await
            })
        })
    }
}

enum Credential {
    Certificate(Identity),
    Token(String),
}
