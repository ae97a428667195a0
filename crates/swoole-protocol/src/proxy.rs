//! The PROXY protocol's header: for whom a proxy has connected.
//!
//! Both versions of HAProxy's specification (`proxy-protocol.txt`, 2020/03/05). The header stands before all else that a
//! connection carries, and only whoever knows that a proxy is at the other end may look for one: bytes of a client that
//! look like a header are a lie.
//!
//! ```
//! use swoole_protocol::proxy::{Told, Versions, parse};
//!
//! let stream = b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\nGET /";
//! assert_eq!(parse(&stream[..20], Versions::ANY)?, None, "not all of it has come");
//! let header = parse(stream, Versions::ANY)?.expect("a whole one");
//! assert_eq!(header.told.source(), Some("192.0.2.1:56324".parse()?));
//! assert_eq!(&stream[header.len..], b"GET /");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Bytes of the longest line of version 1, with its end.
pub const V1_MAX: usize = 107;

/// Bytes of the longest header of version 2 that is taken: far more than proxies send, unless they put certificates there.
/// The format could say 65551.
pub const V2_MAX: usize = 16_384;

/// How version 1 begins.
const V1_BEGIN: &[u8] = b"PROXY ";

/// How version 2 begins.
const V2_BEGIN: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// What stands before the addresses in version 2.
const V2_FIXED: usize = 16;

/// The type of the TLV that holds a checksum.
const TLV_CRC32C: u8 = 3;

/// Which versions are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// Version 1, a line of text.
    pub v1: bool,
    /// Version 2, binary.
    pub v2: bool,
}

impl Versions {
    /// Both.
    pub const ANY: Versions = Versions { v1: true, v2: true };
}

/// A whole header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Its bytes: what comes behind it is the client's.
    pub len: usize,
    /// What it says.
    pub told: Told,
}

/// For whom a proxy has connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// For nobody (`LOCAL`, as for a health check), or for somebody whose address it does not know (`UNKNOWN`, `UNSPEC`): the
    /// connection's own addresses hold.
    Own,
    /// For a client by TCP, or by UDP.
    Inet {
        /// The client.
        source: SocketAddr,
        /// Where the client has connected to: the proxy.
        destination: SocketAddr,
    },
    /// For a client by a Unix socket, which has no address.
    Unix,
}

impl Told {
    /// The client's address, if it is told.
    pub fn source(&self) -> Option<SocketAddr> {
        match self {
            Told::Inet { source, .. } => Some(*source),
            Told::Own | Told::Unix => None,
        }
    }
}

/// Why the bytes are no header. Close the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// They begin otherwise.
    #[error("no PROXY header of a version that is taken")]
    NoHeader,
    /// A header that does not end within the limit.
    #[error("a PROXY header of more than {max} bytes")]
    TooLong {
        /// The limit of its version.
        max: usize,
    },
    /// A header that says what cannot be.
    #[error("a malformed PROXY header: {0}")]
    Malformed(&'static str),
    /// The checksum of version 2 is wrong.
    #[error("a PROXY header whose checksum is wrong")]
    Checksum,
}

/// Looks for a header at the front of all that has come; `None` until it is whole. More bytes change neither a header that
/// was found nor an error.
///
/// # Errors
///
/// [`ProxyError`], as soon as the bytes can be no header that is taken.
pub fn parse(input: &[u8], versions: Versions) -> Result<Option<Header>, ProxyError> {
    let begins = |begin: &[u8]| {
        let common = input.len().min(begin.len());
        input[..common] == begin[..common]
    };
    match input.first() {
        None => Ok(None),
        Some(b'P') if versions.v1 && begins(V1_BEGIN) => v1(input),
        Some(b'\r') if versions.v2 && begins(V2_BEGIN) => v2(input),
        Some(_) => Err(ProxyError::NoHeader),
    }
}

fn v1(input: &[u8]) -> Result<Option<Header>, ProxyError> {
    let window = &input[..input.len().min(V1_MAX)];
    let Some(end) = memchr::memchr(b'\n', window) else {
        return if window.len() == V1_MAX { Err(ProxyError::TooLong { max: V1_MAX }) } else { Ok(None) };
    };
    let line =
        window[..end].strip_suffix(b"\r").ok_or(ProxyError::Malformed("the line does not end with CR LF"))?;
    let text = line.get(V1_BEGIN.len()..).and_then(|text| std::str::from_utf8(text).ok());
    let told = v1_told(text.ok_or(ProxyError::Malformed("the line is no text"))?)?;
    Ok(Some(Header { len: end + 1, told }))
}

/// What stands behind `PROXY `.
fn v1_told(text: &str) -> Result<Told, ProxyError> {
    let mut words = text.split(' ');
    let family = words.next().unwrap_or_default();
    let is_ipv4 = match family {
        // Whatever else stands there.
        "UNKNOWN" => return Ok(Told::Own),
        "TCP4" => true,
        "TCP6" => false,
        _ => return Err(ProxyError::Malformed("the family is none of TCP4, TCP6 and UNKNOWN")),
    };
    let mut ip = || {
        let ip = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        ip.filter(|ip| ip.is_ipv4() == is_ipv4)
            .ok_or(ProxyError::Malformed("an address is none of its family"))
    };
    let (source, destination) = (ip()?, ip()?);
    let mut port =
        || words.next().and_then(number).ok_or(ProxyError::Malformed("a port is no number up to 65535"));
    let (source, destination) = (SocketAddr::new(source, port()?), SocketAddr::new(destination, port()?));
    if words.next().is_some() {
        return Err(ProxyError::Malformed("the line goes on behind the ports"));
    }
    Ok(Told::Inet { source, destination })
}

/// Decimal digits, without a sign or a leading zero.
fn number(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    is_plain.then(|| word.parse().ok()).flatten()
}

fn v2(input: &[u8]) -> Result<Option<Header>, ProxyError> {
    // In the order of the bytes, each as soon as it is there: what is wrong does not depend on how many more have come.
    let Some(command) = input.get(V2_BEGIN.len()) else { return Ok(None) };
    let is_local = match command {
        0x20 => true,
        0x21 => false,
        _ => return Err(ProxyError::Malformed("neither LOCAL nor PROXY of version 2")),
    };
    let Some(family) = input.get(V2_BEGIN.len() + 1) else { return Ok(None) };
    // Family in the upper half, transport in the lower: unspecified, stream, datagram.
    let addresses = match (family >> 4, family & 15) {
        (0, 0..=2) => 0,
        (1, 0..=2) => 12,
        (2, 0..=2) => 36,
        (3, 0..=2) => 216,
        _ => return Err(ProxyError::Malformed("a family or a transport that does not exist")),
    };
    let Some([high, low]) = input.get(V2_FIXED - 2..V2_FIXED) else { return Ok(None) };
    let len = V2_FIXED + usize::from(u16::from_be_bytes([*high, *low]));
    if len > V2_MAX {
        return Err(ProxyError::TooLong { max: V2_MAX });
    }
    // Of LOCAL nothing else counts, and so it may be missing.
    if !is_local && len < V2_FIXED + addresses {
        return Err(ProxyError::Malformed("shorter than the addresses of its family"));
    }
    let Some(header) = input.get(..len) else { return Ok(None) };
    if is_local {
        return Ok(Some(Header { len, told: Told::Own }));
    }
    let (block, tlvs) = header[V2_FIXED..].split_at(addresses);
    check_tlvs(header, tlvs)?;
    let told = match (family >> 4, family & 15) {
        // A transport that is not told leaves nothing to go by.
        (0, _) | (_, 0) => Told::Own,
        (3, _) => Told::Unix,
        _ => inet(block).unwrap_or(Told::Own),
    };
    Ok(Some(Header { len, told }))
}

/// Two addresses of one family, and the two ports.
fn inet(block: &[u8]) -> Option<Told> {
    let (ips, ports) = block.split_at_checked(block.len().checked_sub(4)?)?;
    let (source, destination) = ips.split_at_checked(ips.len() / 2)?;
    let at = |ip: &[u8], port: &[u8]| {
        let ip = match ip.len() {
            4 => IpAddr::from(Ipv4Addr::from(<[u8; 4]>::try_from(ip).ok()?)),
            _ => IpAddr::from(Ipv6Addr::from(<[u8; 16]>::try_from(ip).ok()?)),
        };
        Some(SocketAddr::new(ip, u16::from_be_bytes(port.try_into().ok()?)))
    };
    Some(Told::Inet { source: at(source, &ports[..2])?, destination: at(destination, &ports[2..])? })
}

/// Each has a type, a length of 16 bits, and so many bytes.
fn check_tlvs(header: &[u8], mut tlvs: &[u8]) -> Result<(), ProxyError> {
    while let [kind, rest @ ..] = tlvs {
        let cut_off = ProxyError::Malformed("a TLV is cut off");
        let (len, rest) = rest.split_first_chunk::<2>().ok_or(cut_off)?;
        let (value, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into()).ok_or(cut_off)?;
        if *kind == TLV_CRC32C {
            let told =
                value.try_into().map_err(|_| ProxyError::Malformed("a checksum that has not four bytes"))?;
            let at = value.as_ptr().addr() - header.as_ptr().addr();
            // Counted as if it were zero itself.
            let parts = [&header[..at], &[0; 4], &header[at + 4..]];
            if crc32c(parts.into_iter().flatten()) != u32::from_be_bytes(told) {
                return Err(ProxyError::Checksum);
            }
        }
        tlvs = rest;
    }
    Ok(())
}

/// CRC-32C (Castagnoli), as iSCSI has it.
fn crc32c<'a>(bytes: impl Iterator<Item = &'a u8>) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut index = 0;
        while index < 256 {
            let (mut crc, mut bit) = (index as u32, 0);
            while bit < 8 {
                crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
                bit += 1;
            }
            table[index] = crc;
            index += 1;
        }
        table
    };
    !bytes.fold(!0, |crc, byte| crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(input: &[u8]) -> Result<Option<Header>, ProxyError> {
        parse(input, Versions::ANY)
    }

    fn told(input: &[u8]) -> Told {
        let header = any(input).unwrap().unwrap();
        assert_eq!(header.len, input.len());
        header.told
    }

    fn inet(source: &str, destination: &str) -> Told {
        Told::Inet { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    /// A header of version 2.
    fn binary(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
        let len = u16::try_from(rest.len()).unwrap().to_be_bytes();
        [V2_BEGIN, &[command, family], &len, rest].concat()
    }

    const IPV4: &[u8] = &[192, 0, 2, 1, 198, 51, 100, 7, 0xdc, 0x04, 1, 0xbb];

    #[test]
    fn a_line_says_for_whom() {
        let four = inet("192.0.2.1:56324", "198.51.100.7:443");
        assert_eq!(told(b"PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\r\n"), four);
        let six = inet("[2001:db8::1]:0", "[::1]:65535");
        assert_eq!(told(b"PROXY TCP6 2001:db8::1 ::1 0 65535\r\n"), six);
        assert_eq!(told(b"PROXY UNKNOWN\r\n"), Told::Own);
        assert_eq!(told(b"PROXY UNKNOWN ffff:f...f:ffff ffff:f...f:ffff 65535 65535\r\n"), Told::Own);
        // The longest that the specification knows.
        let longest = format!("PROXY UNKNOWN {0} {0} 65535 65535\r\n", ["ffff"; 8].join(":"));
        assert_eq!(longest.len(), V1_MAX);
        assert_eq!(told(longest.as_bytes()), Told::Own);
    }

    #[test]
    fn a_line_that_lies_about_itself_is_none() {
        for line in [
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443\n",
            "PROXY  TCP4 192.0.2.1 198.51.100.7 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324 443 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 56324\r\n",
            "PROXY TCP4 2001:db8::1 ::1 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.7 56324 443\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.7 56324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 056324 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 65536 443\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.7 +1 443\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.7 1 443\r\n",
            "PROXY \r\n",
        ] {
            assert!(matches!(any(line.as_bytes()), Err(ProxyError::Malformed(_))), "{line:?}");
        }
        for other in ["GET / HTTP/1.1\r\n", "PROXY\r\n", "proxy TCP4", "PROX Y", "\r\nPROXY "] {
            assert_eq!(any(other.as_bytes()), Err(ProxyError::NoHeader), "{other:?}");
        }
        let endless = [V1_BEGIN, &[b'x'; 200]].concat();
        assert_eq!(any(&endless[..V1_MAX - 1]), Ok(None));
        assert_eq!(any(&endless), Err(ProxyError::TooLong { max: V1_MAX }));
    }

    #[test]
    fn the_binary_header_says_for_whom() {
        assert_eq!(told(&binary(0x21, 0x11, IPV4)), inet("192.0.2.1:56324", "198.51.100.7:443"));
        assert_eq!(told(&binary(0x21, 0x12, IPV4)), inet("192.0.2.1:56324", "198.51.100.7:443"));
        let (mut six, source) = ([0; 36], "2001:db8::1".parse::<Ipv6Addr>().unwrap());
        six[..16].copy_from_slice(&source.octets());
        (six[31], six[33], six[35]) = (1, 2, 3);
        assert_eq!(told(&binary(0x21, 0x21, &six)), inet("[2001:db8::1]:2", "[::1]:3"));
        assert_eq!(told(&binary(0x21, 0x31, &[b'/'; 216])), Told::Unix);
        assert_eq!(told(&binary(0x21, 0x00, b"")), Told::Own);
        assert_eq!(told(&binary(0x20, 0x00, b"")), Told::Own);
        // What LOCAL says of addresses and else is nobody's business.
        assert_eq!(told(&binary(0x20, 0x11, b"any")), Told::Own);
    }

    #[test]
    fn what_stands_behind_the_addresses_is_passed_over() {
        let with = |tlvs: &[u8]| binary(0x21, 0x11, &[IPV4, tlvs].concat());
        let expected = inet("192.0.2.1:56324", "198.51.100.7:443");
        assert_eq!(told(&with(b"\x02\0\x05a.org\x04\0\0\xea\0\x01x")), expected);
        for cut in [&b"\x02"[..], b"\x02\0", b"\x02\0\x05a.or"] {
            assert_eq!(any(&with(cut)), Err(ProxyError::Malformed("a TLV is cut off")));
        }
        let large = [&[2, 0x40, 0][..], &[0; 0x4000]].concat();
        assert_eq!(any(&with(&large)), Err(ProxyError::TooLong { max: V2_MAX }));
    }

    #[test]
    fn a_checksum_has_to_be_right() {
        // The check value of the polynomial's catalogue entry.
        assert_eq!(crc32c(b"123456789".iter()), 0xe306_9283);
        let mut header = binary(0x21, 0x11, &[IPV4, b"\x04\0\x02ab\x03\0\x04\0\0\0\0"].concat());
        let sum = crc32c(header.iter()).to_be_bytes();
        let at = header.len() - 4;
        header[at..].copy_from_slice(&sum);
        assert_eq!(told(&header), inet("192.0.2.1:56324", "198.51.100.7:443"));
        header[17] ^= 1;
        assert_eq!(any(&header), Err(ProxyError::Checksum));
        let short = binary(0x21, 0x11, &[IPV4, b"\x03\0\x03\0\0\0"].concat());
        assert_eq!(any(&short), Err(ProxyError::Malformed("a checksum that has not four bytes")));
    }

    #[test]
    fn what_is_no_binary_header_is_refused() {
        for (command, family) in [(0x11, 0x11), (0x22, 0x11), (0x21, 0x41), (0x21, 0x13), (0x21, 0x1f)] {
            let header = binary(command, family, IPV4);
            assert!(matches!(any(&header), Err(ProxyError::Malformed(_))), "{command:x} {family:x}");
        }
        let short = Err(ProxyError::Malformed("shorter than the addresses of its family"));
        assert_eq!(any(&binary(0x21, 0x11, &IPV4[..11])), short);
        assert_eq!(any(b"\r\n\r\n\0\r\nQUIX"), Err(ProxyError::NoHeader));
    }

    #[test]
    fn a_version_that_is_not_taken_is_no_header() {
        let (line, header) = (b"PROXY UNKNOWN\r\n", binary(0x20, 0, b""));
        let (only_v1, only_v2) = (Versions { v1: true, v2: false }, Versions { v1: false, v2: true });
        assert!(parse(line, only_v1).unwrap().is_some() && parse(&header, only_v2).unwrap().is_some());
        assert_eq!(parse(line, only_v2), Err(ProxyError::NoHeader));
        assert_eq!(parse(&header, only_v1), Err(ProxyError::NoHeader));
    }
}
