//! Whom a certificate is for: as much of X.509 (RFC 5280) as says so.
//!
//! The certificate has been verified before; this says what is in it, and decides nothing. What cannot be read, or would look
//! like something else where it is printed, is left out.

use std::net::{Ipv4Addr, Ipv6Addr};

const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const UTF8_STRING: u8 = 0x0c;
const PRINTABLE_STRING: u8 = 0x13;
const IA5_STRING: u8 = 0x16;
/// Context-specific: the version, and the extensions.
const VERSION: u8 = 0xa0;
const EXTENSIONS: u8 = 0xa3;
/// `id-at-commonName`, 2.5.4.3.
const COMMON_NAME: [u8; 3] = [0x55, 4, 3];
/// `id-ce-subjectAltName`, 2.5.29.17.
const ALT_NAME: [u8; 3] = [0x55, 0x1d, 17];
/// Kinds of `GeneralName`.
const EMAIL: u8 = 0x81;
const DNS: u8 = 0x82;
const URI: u8 = 0x86;
const IP: u8 = 0x87;

/// Whom a certificate is for.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Subject {
    /// If there is exactly one.
    pub(super) common_name: Option<String>,
    /// `DNS:…`, `email:…`, `URI:…`, `IP:…`.
    pub(super) names: Vec<String>,
}

impl Subject {
    /// That of this certificate (DER).
    pub(super) fn of(certificate: &[u8]) -> Subject {
        Subject::read(certificate).unwrap_or_default()
    }

    fn read(certificate: &[u8]) -> Option<Subject> {
        let mut parts = Der(Der(Der(certificate).expect(SEQUENCE)?).expect(SEQUENCE)?);
        // Serial number, or the version before it; signature, issuer, validity. Behind the subject comes its key.
        if parts.next()?.0 == VERSION {
            parts.next()?;
        }
        let _ = (parts.next()?, parts.next()?, parts.next()?);
        let common_name = common_name(parts.expect(SEQUENCE)?);
        let extensions = parts.find(|(tag, _)| *tag == EXTENSIONS);
        let names = extensions.and_then(|(_, extensions)| alt_names(extensions));
        Some(Subject { common_name, names: names.unwrap_or_default() })
    }
}

fn common_name(subject: &[u8]) -> Option<String> {
    let sets = Der(subject).filter(|(tag, _)| *tag == SET);
    let attributes = sets.flat_map(|(_, set)| Der(set)).filter(|(tag, _)| *tag == SEQUENCE);
    let mut values = attributes.filter_map(|(_, attribute)| {
        let mut attribute = Der(attribute);
        (attribute.expect(OBJECT_ID)? == COMMON_NAME).then(|| attribute.next())
    });
    let (value, None) = (values.next()?, values.next()) else { return None };
    let (UTF8_STRING | PRINTABLE_STRING | IA5_STRING, value) = value? else { return None };
    text(value)
}

fn alt_names(extensions: &[u8]) -> Option<Vec<String>> {
    let extensions = Der(Der(extensions).expect(SEQUENCE)?).filter(|(tag, _)| *tag == SEQUENCE);
    let mut values = extensions.filter_map(|(_, extension)| {
        let mut extension = Der(extension);
        // Whether it is critical may stand between the two.
        (extension.expect(OBJECT_ID)? == ALT_NAME).then(|| extension.find(|(tag, _)| *tag == OCTETS))?
    });
    let (_, value) = values.next()?;
    Some(Der(Der(value).expect(SEQUENCE)?).filter_map(|(tag, value)| general_name(tag, value)).collect())
}

fn general_name(tag: u8, value: &[u8]) -> Option<String> {
    let ascii = |value| text(value).filter(|text| text.is_ascii());
    Some(match tag {
        EMAIL => format!("email:{}", ascii(value)?),
        DNS => format!("DNS:{}", ascii(value)?),
        URI => format!("URI:{}", ascii(value)?),
        IP => match value.len() {
            4 => format!("IP:{}", Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?)),
            _ => format!("IP:{}", Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?)),
        },
        _ => return None,
    })
}

fn text(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok()?;
    (!text.chars().any(char::is_control)).then(|| text.to_owned())
}

/// Values of DER, one behind the other: their tags and contents. It ends at what is none.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The contents of the next one, if it has this tag.
    fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, value)| value)
    }
}

impl<'a> Iterator for Der<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let ([tag, first], rest) = self.0.split_first_chunk()?;
        let (len, rest) = match *first {
            len @ ..=0x7f => (usize::from(len), rest),
            // How many bytes of a length follow; it is longer than anything here with more than four.
            count @ 0x81..=0x84 => {
                let (len, rest) = rest.split_at_checked(usize::from(count & 0x7f))?;
                (len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (value, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((*tag, value))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair, SanType};

    use super::*;

    fn certificate(common_names: &[&str], names: &[SanType]) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "somebody");
        for name in common_names {
            params.distinguished_name.push(DnType::CommonName, *name);
        }
        params.subject_alt_names = names.to_vec();
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
    }

    #[test]
    fn names_are_read() {
        let names = [
            SanType::DnsName("a.example.org".try_into().unwrap()),
            SanType::URI("spiffe://example.org/a".try_into().unwrap()),
            SanType::Rfc822Name("a@example.org".try_into().unwrap()),
            SanType::IpAddress("192.0.2.1".parse().unwrap()),
            SanType::IpAddress("2001:db8::1".parse().unwrap()),
        ];
        let subject = Subject::of(&certificate(&["Jürgen"], &names));
        assert_eq!(subject.common_name.as_deref(), Some("Jürgen"));
        let expected = [
            "DNS:a.example.org",
            "URI:spiffe://example.org/a",
            "email:a@example.org",
            "IP:192.0.2.1",
            "IP:2001:db8::1",
        ];
        assert_eq!(subject.names, expected);
        assert_eq!(Subject::of(&certificate(&[], &[])), Subject::default());
        // What would end a line in a log.
        assert_eq!(Subject::of(&certificate(&["a\nb"], &[])), Subject::default());
    }

    #[test]
    fn one_of_two_common_names_is_none() {
        let of = |name: &str| {
            [&[SET, 12, SEQUENCE, 10, OBJECT_ID, 3, 0x55, 4, 3, UTF8_STRING, 3][..], name.as_bytes()].concat()
        };
        assert_eq!(common_name(&of("abc")).as_deref(), Some("abc"));
        assert_eq!(common_name(&[of("abc"), of("abd")].concat()), None);
    }

    proptest! {
        #[test]
        fn anything_is_read_to_an_end(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            Subject::of(&bytes);
        }

        #[test]
        fn a_certificate_with_other_bytes_in_it_is_read_to_an_end(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        ) {
            static WHOLE: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
                certificate(&["name"], &[SanType::DnsName("a.example.org".try_into().unwrap())])
            });
            let mut bytes = WHOLE.clone();
            for (index, value) in changes {
                *index.get_mut(&mut bytes) = value;
            }
            let Subject { common_name, names } = Subject::of(&bytes);
            prop_assert!(common_name.iter().chain(&names).all(|name| !name.contains(char::is_control)));
        }
    }
}
