//! Keys and certificates of a control plane.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose,
    IsCa, KeyPair, KeyUsagePurpose, SanType,
};

/// A certificate authority that keeps everything in one folder.
pub struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A key and its certificate, as files and as text.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The certificate's file.
    pub certificate: PathBuf,
    /// The key's file.
    pub key: PathBuf,
}

impl Authority {
    /// Makes an authority.
    ///
    /// # Errors
    /// If its certificate cannot be written.
    pub fn create(folder: &Path) -> Result<Self> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = name("lab", None);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
        let authority = Self { folder: folder.to_owned(), issuer };
        write(&authority.certificate(), &authority.issuer.pem())?;
        Ok(authority)
    }

    /// The file with the authority's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// Makes a server's certificate.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn server(&self, file: &str, addresses: &[IpAddr]) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.subject_alt_names = addresses.iter().map(|address| SanType::IpAddress(*address)).collect();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.distinguished_name = name(file, None);
        self.sign(file, params)
    }

    /// Makes the certificate of a user in a group.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn client(&self, file: &str, user: &str, group: Option<&str>) -> Result<Identity> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.distinguished_name = name(user, group);
        self.sign(file, params)
    }

    /// Makes a pair of keys without a certificate; returns the private one's file and the public one's.
    ///
    /// # Errors
    /// If they cannot be written.
    pub fn keys(&self, file: &str) -> Result<(PathBuf, PathBuf)> {
        let key = KeyPair::generate()?;
        let paths = (self.folder.join(format!("{file}.key")), self.folder.join(format!("{file}.pub")));
        write(&paths.0, &key.serialize_pem())?;
        write(&paths.1, &key.public_key_pem())?;
        Ok(paths)
    }

    fn sign(&self, file: &str, params: CertificateParams) -> Result<Identity> {
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let identity = Identity {
            certificate: self.folder.join(format!("{file}.crt")),
            key: self.folder.join(format!("{file}.key")),
        };
        write(&identity.certificate, &certificate.pem())?;
        write(&identity.key, &key.serialize_pem())?;
        Ok(identity)
    }
}

fn name(common: &str, organization: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    if let Some(organization) = organization {
        name.push(DnType::OrganizationName, organization);
    }
    name
}

fn write(path: &Path, content: &str) -> Result<()> {
    fs::write(path, content).with_context(|| format!("cannot write {}", path.display()))
}
