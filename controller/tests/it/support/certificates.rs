//! An authority of one test, and a certificate of it for servers and clients on loopback.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};

/// All as PEM.
pub(crate) struct Certificates {
    /// The authority.
    pub(crate) ca: String,
    /// What a server or a client shows.
    pub(crate) certificate: String,
    /// The key that belongs to it.
    pub(crate) key: String,
}

impl Certificates {
    pub(crate) fn make() -> Certificates {
        let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key")).expect("an authority");
        let mut member = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).expect("parameters");
        member.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().expect("a key");
        let certificate = member.signed_by(&key, &authority).expect("a certificate");
        Certificates { ca: authority.pem(), certificate: certificate.pem(), key: key.serialize_pem() }
    }
}
