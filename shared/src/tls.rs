//! Certificates and TLS settings that all programs use: trust in exactly one authority, never in the machine's roots.
//!
//! Whoever has a join token knows only the SHA-256 of the authority's certificate: [`pinned_client`] looks for that
//! certificate in the chain that the server presents, and from then on it is an ordinary root. Everyone else has the
//! authority as PEM and uses [`client`]. TLS 1.3 only, no resumption: a session never outlives a certificate.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::clock::Timestamp;
use crate::id::Digest;
use crate::secret::Secret;

/// Why something about certificates failed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate stands in a text.
    #[error("read the {what}: it holds no certificate in PEM form")]
    NoCertificate {
        /// What was read.
        what: &'static str,
    },
    /// A text is not PEM, or a certificate is malformed.
    #[error("read the {what}: it is not a valid certificate in PEM form")]
    MalformedCertificate {
        /// What was read.
        what: &'static str,
    },
    /// A private key cannot be read. The cause may quote the key, so it is left out.
    #[error("read the private key: it is not a key in PEM form")]
    MalformedKey,
    /// A key pair or a signing request cannot be made.
    #[error("make a key and a signing request")]
    SigningRequest(#[source] rcgen::Error),
    /// Certificates and key do not make TLS settings.
    #[error("set up TLS")]
    Settings(#[source] rustls::Error),
}

/// The server shows no certificate chain with the authority that the join token names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the server does not present the authority that the join token was made for: check the controller's address, \
     and make a new join token with `devfleet join-token create` if the controller was set up anew"
)]
pub struct AuthorityNotPinned;

/// A private key and the request to have it certified.
#[derive(Debug)]
pub struct SigningRequest {
    /// PKCS#10, PEM. It names nobody: who the key belongs to is the controller's decision.
    pub request_pem: String,
    /// PKCS#8, PEM.
    pub key_pem: Secret,
}

/// Makes `ring` the provider of cryptography for the whole process. A second call changes nothing.
pub fn install_provider() {
    drop(ring::default_provider().install_default());
}

/// Reads every certificate of a PEM text; at least one.
pub fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::MalformedCertificate { what })?;
    if found.is_empty() { Err(TlsError::NoCertificate { what }) } else { Ok(found) }
}

/// Reads a private key.
pub fn private_key(pem: &Secret) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.expose().as_bytes()).map_err(|_| TlsError::MalformedKey)
}

/// Hashes the first certificate of a PEM text: an authority's fingerprint.
pub fn fingerprint(pem: &str) -> Result<Digest, TlsError> {
    Ok(Digest::of(&certificates(pem, "authority")?[0]))
}

/// Returns when a certificate begins and ends to be valid.
pub fn validity(certificate: &CertificateDer<'_>) -> Result<(Timestamp, Timestamp), TlsError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| TlsError::MalformedCertificate { what: "certificate" })?;
    let moment = |time: x509_parser::time::ASN1Time| Timestamp(u64::try_from(time.timestamp()).unwrap_or(0) * 1_000);
    Ok((moment(parsed.validity().not_before), moment(parsed.validity().not_after)))
}

/// Makes a new key (ECDSA P-256) and a request to certify it.
pub fn signing_request() -> Result<SigningRequest, TlsError> {
    let key = rcgen::KeyPair::generate().map_err(TlsError::SigningRequest)?;
    let request_pem = request_for(&key)?;
    Ok(SigningRequest { request_pem, key_pem: Secret::new(key.serialize_pem()) })
}

/// Makes a request to certify a key that is there already.
pub fn signing_request_for(key_pem: &Secret) -> Result<String, TlsError> {
    let key = rcgen::KeyPair::from_pem(key_pem.expose()).map_err(|_| TlsError::MalformedKey)?;
    request_for(&key)
}

fn request_for(key: &rcgen::KeyPair) -> Result<String, TlsError> {
    let mut wanted = rcgen::CertificateParams::default();
    wanted.distinguished_name = rcgen::DistinguishedName::new();
    wanted.serialize_request(key).and_then(|request| request.pem()).map_err(TlsError::SigningRequest)
}

/// Makes settings for a client that trusts one authority and, if it has one, shows a certificate of its own.
pub fn client(authority_pem: &str, own: Option<(&str, &Secret)>) -> Result<ClientConfig, TlsError> {
    let roots = roots(&certificates(authority_pem, "authority")?)?;
    let builder = builder()?.with_root_certificates(roots);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(certificates(chain, "own certificate")?, private_key(key)?)
            .map_err(TlsError::Settings)?,
    };
    Ok(finish(config))
}

/// Makes settings for a client that knows of its authority only the SHA-256 of its certificate.
pub fn pinned_client(authority: &Digest) -> Result<ClientConfig, TlsError> {
    let verifier = PinnedAuthority { authority: authority.clone(), provider: Arc::new(ring::default_provider()) };
    Ok(finish(builder()?.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()))
}

/// Makes a root store of certificates that are to be trusted.
pub fn roots(authorities: &[CertificateDer<'static>]) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(authority.clone()).map_err(TlsError::Settings)?;
    }
    Ok(roots)
}

fn builder() -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, TlsError> {
    ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Settings)
}

fn finish(mut config: ClientConfig) -> ClientConfig {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config
}

/// Accepts a server whose chain holds the pinned authority and whose own certificate is valid under it.
#[derive(Debug)]
struct PinnedAuthority {
    authority: Digest,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for PinnedAuthority {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let authority = intermediates
            .iter()
            .find(|certificate| Digest::of(certificate) == self.authority)
            .ok_or_else(|| rustls::Error::Other(OtherError(Arc::new(AuthorityNotPinned))))?;
        let mut roots = RootCertStore::empty();
        roots.add(authority.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(name: &str) -> (rcgen::Issuer<'static, rcgen::KeyPair>, CertificateDer<'static>) {
        let key = rcgen::KeyPair::generate().expect("key");
        let mut wanted = rcgen::CertificateParams::default();
        wanted.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        wanted.distinguished_name.push(rcgen::DnType::CommonName, name);
        let certificate = wanted.self_signed(&key).expect("certificate").der().clone();
        (rcgen::Issuer::new(wanted, key), certificate)
    }

    fn server(issuer: &rcgen::Issuer<'static, rcgen::KeyPair>, name: &str) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().expect("key");
        let wanted = rcgen::CertificateParams::new([name.to_owned()]).expect("name");
        wanted.signed_by(&key, issuer).expect("certificate").der().clone()
    }

    fn verify(pin: &CertificateDer<'_>, leaf: &CertificateDer<'_>, chain: &[CertificateDer<'_>]) -> Result<(), String> {
        let verifier = PinnedAuthority { authority: Digest::of(pin), provider: Arc::new(ring::default_provider()) };
        let name = ServerName::try_from("controller").expect("name");
        let now = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        verifier.verify_server_cert(leaf, chain, &name, &[], now).map(drop).map_err(|error| error.to_string())
    }

    #[test]
    fn a_pin_accepts_only_a_valid_server_under_exactly_that_authority() {
        let ((ours, our_ca), (theirs, their_ca)) = (authority("ours"), authority("theirs"));
        let (good, foreign, misnamed) =
            (server(&ours, "controller"), server(&theirs, "controller"), server(&ours, "elsewhere"));
        assert_eq!(verify(&our_ca, &good, std::slice::from_ref(&our_ca)), Ok(()));
        assert!(
            verify(&our_ca, &foreign, std::slice::from_ref(&their_ca))
                .expect_err("another authority")
                .contains("join token")
        );
        assert!(verify(&our_ca, &good, &[]).is_err(), "the authority is not shown");
        // An impostor may well show our authority beside a leaf that it did not sign.
        assert!(verify(&our_ca, &foreign, &[our_ca.clone(), their_ca]).is_err());
        assert!(verify(&our_ca, &misnamed, std::slice::from_ref(&our_ca)).is_err());
    }

    #[test]
    fn a_signing_request_shows_nothing_of_its_key() {
        let made = signing_request().expect("request");
        assert!(made.request_pem.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
        assert!(!format!("{made:?}").contains("PRIVATE"));
        let again = signing_request_for(&made.key_pem).expect("request");
        assert!(again.starts_with("-----BEGIN CERTIFICATE REQUEST-----"));
    }

    #[test]
    fn texts_that_hold_no_certificate_are_refused() {
        for text in ["", "hello", "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----"] {
            assert!(client(text, None).is_err(), "{text:?}");
            assert!(fingerprint(text).is_err(), "{text:?}");
        }
        assert!(private_key(&Secret::new("hello")).is_err());
    }
}
