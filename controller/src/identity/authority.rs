//! The fleet's own certificate authority: one key on the controller's disk.
//!
//! It certifies the controller's listener and the hosts. Of a host's signing request nothing is believed but the key:
//! what a certificate says is this program's decision alone.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use devfleet_shared::clock::{Clock, Timestamp};
use devfleet_shared::id::{ControllerId, Digest, HostId};
use devfleet_shared::secret::Secret;
use devfleet_shared::tls;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
    date_time_ymd,
};
use rustls_pki_types::CertificateDer;
use uuid::Uuid;
use x509_parser::extensions::GeneralName;

use super::IdentityError;

const AUTHORITY_LIFE: Duration = Duration::from_secs(3_650 * 24 * 3_600);
const SERVER_LIFE: Duration = Duration::from_secs(90 * 24 * 3_600);
const HOST_LIFE: Duration = Duration::from_secs(24 * 3_600);
/// Certificates begin this long before they are made: clocks of machines differ.
const BACKDATED: Duration = Duration::from_secs(3_600);
const HOST_URI: &str = "spiffe://devfleet/host/";
const CONTROLLER_URI: &str = "spiffe://devfleet/controller/";
const REQUEST_BYTES: usize = 16 << 10;

/// A certificate and the key that was made for it.
#[derive(Debug, Clone)]
pub struct Issued {
    /// PEM, the certificate alone.
    pub certificate_pem: String,
    /// PKCS#8, PEM.
    pub key_pem: Secret,
    /// When it ends to be valid.
    pub ends: Timestamp,
}

/// A certificate for a key that its holder keeps.
#[derive(Debug, Clone)]
pub struct Certified {
    /// PEM, the certificate alone.
    pub certificate_pem: String,
    /// When it ends to be valid.
    pub ends: Timestamp,
}

/// The certificate authority.
pub struct Authority {
    certificate_pem: String,
    fingerprint: Digest,
    issuer: Issuer<'static, KeyPair>,
    clock: Clock,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("fingerprint", &self.fingerprint).finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens the authority in this directory (`authority.pem`, `authority.key`), or makes a new one if there is none.
    ///
    /// Fails if only the certificate is there, if the two do not belong together, or if others may read the key.
    pub fn open_or_create(directory: &Path, clock: &Clock) -> Result<Authority, IdentityError> {
        let file = |operation, path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::File { operation, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(file("create", directory))?;
        let (key_path, certificate_path) = (directory.join("authority.key"), directory.join("authority.pem"));
        let certificate_there = certificate_path.exists();
        if !key_path.exists() {
            if certificate_there {
                return Err(IdentityError::Unpaired { directory: directory.to_owned() });
            }
            let key = KeyPair::generate().map_err(IdentityError::Issue)?;
            write_new(&key_path, key.serialize_pem().as_bytes(), 0o600).map_err(file("write", &key_path))?;
        }
        let mode = key_path.metadata().map_err(file("read", &key_path))?.permissions().mode();
        if mode & 0o077 != 0 {
            return Err(IdentityError::ExposedKey { path: key_path });
        }
        let key_pem = Secret::new(std::fs::read_to_string(&key_path).map_err(file("read", &key_path))?);
        let unpaired = || IdentityError::Unpaired { directory: directory.to_owned() };
        let key = KeyPair::from_pem(key_pem.expose()).map_err(|_| unpaired())?;
        if !certificate_there {
            let certificate = self_signed(&key, clock)?;
            write_new(&certificate_path, certificate.as_bytes(), 0o644).map_err(file("write", &certificate_path))?;
        }
        let certificate_pem = std::fs::read_to_string(&certificate_path).map_err(file("read", &certificate_path))?;
        Self::from_parts(certificate_pem, key, clock).ok_or_else(unpaired)
    }

    fn from_parts(certificate_pem: String, key: KeyPair, clock: &Clock) -> Option<Authority> {
        let certificate = tls::certificates(&certificate_pem, "authority").ok()?.into_iter().next()?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).ok()?;
        if *parsed.public_key().subject_public_key.data != *key.public_key_raw() {
            return None;
        }
        let fingerprint = Digest::of(&certificate);
        let issuer = Issuer::from_ca_cert_der(&certificate, key).ok()?;
        Some(Authority { certificate_pem, fingerprint, issuer, clock: clock.clone() })
    }

    /// Returns the authority's certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// Returns the SHA-256 of the authority's certificate (DER): what join tokens pin.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint.clone()
    }

    /// Makes a key and a certificate for the listener, for these host names and addresses, valid for 90 days.
    pub fn issue_server(&self, names: &[String]) -> Result<Issued, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::Issue)?;
        let names = names
            .iter()
            .map(|name| match name.parse::<IpAddr>() {
                Ok(address) => Ok(SanType::IpAddress(address)),
                Err(_) => match rustls_pki_types::DnsName::try_from(name.as_str()) {
                    Ok(_) => name.as_str().try_into().map(SanType::DnsName).map_err(IdentityError::Issue),
                    Err(_) => Err(IdentityError::BadName { name: name.clone() }),
                },
            })
            .collect::<Result<Vec<_>, _>>()?;
        let (wanted, ends) =
            self.certificate("devfleet controller", names, ExtendedKeyUsagePurpose::ServerAuth, SERVER_LIFE);
        let certificate = wanted.signed_by(&key, &self.issuer).map_err(IdentityError::Issue)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: Secret::new(key.serialize_pem()), ends })
    }

    /// Certifies the key of a signing request for a host, valid for 24 hours. All else in the request is ignored.
    pub fn sign_host(&self, request_pem: &str, host: &HostId) -> Result<Certified, IdentityError> {
        let request = read_request(request_pem)?;
        let uri = format!("{HOST_URI}{host}").try_into().map_err(IdentityError::Issue)?;
        let (wanted, ends) =
            self.certificate("devfleet host", vec![SanType::URI(uri)], ExtendedKeyUsagePurpose::ClientAuth, HOST_LIFE);
        let certificate = wanted.signed_by(&request.public_key, &self.issuer).map_err(IdentityError::Issue)?;
        Ok(Certified { certificate_pem: certificate.pem(), ends })
    }

    /// Makes a key and a certificate with which a controller passes calls on to another, valid as the listener's.
    pub fn issue_controller(&self, controller: &ControllerId) -> Result<Issued, IdentityError> {
        let key = KeyPair::generate().map_err(IdentityError::Issue)?;
        let uri = format!("{CONTROLLER_URI}{controller}").try_into().map_err(IdentityError::Issue)?;
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        let (wanted, ends) = self.certificate("devfleet controller", vec![SanType::URI(uri)], purpose, SERVER_LIFE);
        let certificate = wanted.signed_by(&key, &self.issuer).map_err(IdentityError::Issue)?;
        Ok(Issued { certificate_pem: certificate.pem(), key_pem: Secret::new(key.serialize_pem()), ends })
    }

    fn certificate(
        &self,
        subject: &str,
        names: Vec<SanType>,
        purpose: ExtendedKeyUsagePurpose,
        life: Duration,
    ) -> (CertificateParams, Timestamp) {
        let (mut wanted, ends) = template(subject, &self.clock, life);
        wanted.subject_alt_names = names;
        wanted.is_ca = IsCa::ExplicitNoCa;
        wanted.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        wanted.extended_key_usages = vec![purpose];
        wanted.use_authority_key_identifier_extension = true;
        (wanted, ends)
    }
}

/// Returns the digest of the public key in a signing request, whose signature proves that the sender has the key.
pub fn key_of_request(request_pem: &str) -> Result<Digest, IdentityError> {
    Ok(Digest::of(&read_request(request_pem)?.public_key.subject_public_key_info()))
}

fn read_request(request_pem: &str) -> Result<CertificateSigningRequestParams, IdentityError> {
    if request_pem.len() > REQUEST_BYTES {
        return Err(IdentityError::BadRequest(None));
    }
    CertificateSigningRequestParams::from_pem(request_pem).map_err(|error| IdentityError::BadRequest(Some(error)))
}

/// Returns the host that a certificate names, if it names exactly one. Says nothing about who signed it.
pub fn host_of(certificate_der: &[u8]) -> Option<HostId> {
    named(certificate_der, HOST_URI)
}

/// Returns the controller that a certificate names, likewise.
pub fn controller_of(certificate_der: &[u8]) -> Option<ControllerId> {
    named(certificate_der, CONTROLLER_URI)
}

fn named<T: std::str::FromStr>(certificate_der: &[u8], beginning: &str) -> Option<T> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate_der).ok()?;
    let names = parsed.subject_alternative_name().ok()??;
    match names.value.general_names.as_slice() {
        [GeneralName::URI(uri)] => uri.strip_prefix(beginning)?.parse().ok(),
        _ => None,
    }
}

fn self_signed(key: &KeyPair, clock: &Clock) -> Result<String, IdentityError> {
    let (mut wanted, _) = template("devfleet authority", clock, AUTHORITY_LIFE);
    wanted.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    wanted.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(wanted.self_signed(key).map_err(IdentityError::Issue)?.pem())
}

fn template(subject: &str, clock: &Clock, life: Duration) -> (CertificateParams, Timestamp) {
    let now = clock.now();
    // X.509 counts whole seconds.
    let ends = Timestamp(now.after(life).0 / 1_000 * 1_000);
    let moment = |time: Timestamp| date_time_ymd(1970, 1, 1) + Duration::from_secs(time.0 / 1_000);
    let mut wanted = CertificateParams::default();
    wanted.not_before = moment(Timestamp(now.0.saturating_sub(BACKDATED.as_millis() as u64)));
    wanted.not_after = moment(ends);
    wanted.distinguished_name = DistinguishedName::new();
    wanted.distinguished_name.push(DnType::CommonName, subject);
    wanted.serial_number = Some(SerialNumber::from_slice(Uuid::new_v4().as_bytes()));
    (wanted, ends)
}

/// Writes a file that appears whole or not at all, and is not written over.
fn write_new(path: &Path, content: &[u8], mode: u32) -> std::io::Result<()> {
    let part = path.with_extension(format!("{}.part", std::process::id()));
    match std::fs::remove_file(&part) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&part)?;
    file.write_all(content)?;
    file.sync_all()?;
    let linked = std::fs::hard_link(&part, path);
    std::fs::remove_file(&part)?;
    linked?;
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

/// Reads the certificates of the listener's chain: its own, then the authority's, so that a joining host can pin it.
pub(super) fn chain(authority: &Authority, issued: &Issued) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let mut chain = tls::certificates(&issued.certificate_pem, "server certificate").map_err(IdentityError::Tls)?;
    chain.extend(tls::certificates(&authority.certificate_pem, "authority").map_err(IdentityError::Tls)?);
    Ok(chain)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;

    use super::*;

    fn authority(directory: &Path) -> Authority {
        Authority::open_or_create(directory, &Clock::system()).expect("authority")
    }

    fn signed(authority: &Authority, request: &str, host: &HostId) -> (CertificateDer<'static>, Timestamp) {
        let issued = authority.sign_host(request, host).expect("signed");
        (tls::certificates(&issued.certificate_pem, "host").expect("pem").remove(0), issued.ends)
    }

    #[test]
    fn the_authority_stays_the_same_when_it_is_opened_again() {
        let directory = tempfile::tempdir().expect("dir");
        let path = directory.path().join("ca");
        let first = authority(&path);
        assert_eq!(authority(&path).fingerprint(), first.fingerprint());
        assert_eq!(tls::fingerprint(first.certificate_pem()).expect("pem"), first.fingerprint());
        let mode = path.join("authority.key").metadata().expect("key").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_crash_between_key_and_certificate_is_made_good() {
        let directory = tempfile::tempdir().expect("dir");
        authority(directory.path());
        std::fs::remove_file(directory.path().join("authority.pem")).expect("remove");
        let again = authority(directory.path());
        assert!(again.sign_host(&tls::signing_request().expect("request").request_pem, &HostId::random()).is_ok());
    }

    #[test]
    fn a_key_of_another_authority_or_one_that_others_read_is_refused() {
        let (ours, theirs) = (tempfile::tempdir().expect("dir"), tempfile::tempdir().expect("dir"));
        authority(ours.path());
        authority(theirs.path());
        let key = ours.path().join("authority.key");
        std::fs::set_permissions(&key, Permissions::from_mode(0o640)).expect("chmod");
        let refused = |path: &Path| Authority::open_or_create(path, &Clock::system()).map(drop).expect_err("refused");
        assert!(matches!(refused(ours.path()), IdentityError::ExposedKey { .. }));
        std::fs::set_permissions(&key, Permissions::from_mode(0o600)).expect("chmod");
        std::fs::copy(theirs.path().join("authority.key"), &key).expect("copy");
        assert!(matches!(refused(ours.path()), IdentityError::Unpaired { .. }));
        std::fs::remove_file(&key).expect("remove");
        assert!(matches!(refused(ours.path()), IdentityError::Unpaired { .. }));
        assert!(!key.exists(), "no new key beside an old certificate");
    }

    #[test]
    fn a_host_certificate_names_the_host_for_a_day_and_begins_an_hour_ago() {
        let directory = tempfile::tempdir().expect("dir");
        let clock = Clock::fixed(Timestamp(1_800_000_000_000));
        let authority = Authority::open_or_create(directory.path(), &clock).expect("authority");
        let host = HostId::random();
        let (certificate, ends) = signed(&authority, &tls::signing_request().expect("request").request_pem, &host);
        assert_eq!(host_of(&certificate), Some(host));
        assert_eq!(ends, Timestamp(1_800_000_000_000 + 24 * 3_600_000));
        assert_eq!(tls::validity(&certificate).expect("validity"), (Timestamp(1_800_000_000_000 - 3_600_000), ends));
    }

    #[test]
    fn nothing_of_a_signing_request_but_its_key_ends_up_in_the_certificate() {
        let directory = tempfile::tempdir().expect("dir");
        let authority = authority(directory.path());
        let key = KeyPair::generate().expect("key");
        let mut wanted = CertificateParams::new(["controller".to_owned()]).expect("name");
        wanted.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        wanted.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let evil = format!("{HOST_URI}{}", HostId::random());
        wanted.subject_alt_names.push(SanType::URI(evil.try_into().expect("uri")));
        let request = wanted.serialize_request(&key).and_then(|request| request.pem()).expect("request");
        let host = HostId::random();
        let (certificate, _) = signed(&authority, &request, &host);
        assert_eq!(host_of(&certificate), Some(host));
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).expect("certificate");
        assert!(!parsed.is_ca());
        let purposes = parsed.extended_key_usage().expect("usage").expect("usage").value;
        assert!(purposes.client_auth && !purposes.server_auth && !purposes.any);
        assert_eq!(*parsed.public_key().subject_public_key.data, *key.public_key_raw());
    }

    #[test]
    fn what_is_no_signing_request_or_no_name_is_refused() {
        let directory = tempfile::tempdir().expect("dir");
        let authority = authority(directory.path());
        let valid = tls::signing_request().expect("request").request_pem;
        let mut forged: Vec<char> = valid.chars().collect();
        let inside_signature = valid.find("\n-----END").expect("end") - 10;
        forged[inside_signature] = if forged[inside_signature] == 'A' { 'B' } else { 'A' };
        for request in
            ["", "hello", authority.certificate_pem(), &forged.iter().collect::<String>(), &"x".repeat(20_000)]
        {
            assert!(matches!(authority.sign_host(request, &HostId::random()), Err(IdentityError::BadRequest(_))));
        }
        assert!(matches!(authority.issue_server(&["a b".into()]), Err(IdentityError::BadName { .. })));
        assert!(authority.issue_server(&["localhost".into(), "127.0.0.1".into(), "::1".into()]).is_ok());
    }
}
