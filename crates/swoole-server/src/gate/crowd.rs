//! How many clients each address has. Pure.

use std::collections::HashMap;
use std::net::IpAddr;

/// Where clients are counted together: one listener, and one address, or one network of IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) struct Place {
    listener: u16,
    block: Block,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Block {
    Address(u32),
    Network(u64),
}

impl Place {
    pub(super) fn new(listener: u16, address: IpAddr) -> Place {
        let block = match address.to_canonical() {
            IpAddr::V4(address) => Block::Address(address.to_bits()),
            IpAddr::V6(address) => Block::Network((address.to_bits() >> 64) as u64),
        };
        Place { listener, block }
    }
}

/// No larger than there are clients.
#[derive(Debug, Default)]
pub(super) struct Crowd(HashMap<Place, usize>);

impl Crowd {
    /// One more comes, if there are fewer than `limit`.
    pub(super) fn enter(&mut self, place: Place, limit: usize) -> bool {
        let count = self.0.entry(place).or_default();
        let has_room = *count < limit;
        *count += usize::from(has_room);
        if *count == 0 {
            self.0.remove(&place);
        }
        has_room
    }

    pub(super) fn leave(&mut self, place: Place) {
        let Some(count) = self.0.get_mut(&place) else { return };
        *count = count.saturating_sub(1);
        if *count == 0 {
            self.0.remove(&place);
            // After a flood.
            if self.0.capacity() > 1024 && self.0.len() < self.0.capacity() / 8 {
                self.0.shrink_to(2 * self.0.len());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn place(address: &str) -> Place {
        Place::new(0, address.parse().unwrap())
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one() {
        assert_eq!(place("2001:db8:0:1::1"), place("2001:db8:0:1:ffff::2"));
        assert_ne!(place("2001:db8:0:1::1"), place("2001:db8:0:2::1"));
        assert_eq!(place("::ffff:10.0.0.1"), place("10.0.0.1"), "as a listener of both tells it");
        assert_ne!(place("10.0.0.1"), place("10.0.0.2"));
        assert_ne!(place("10.0.0.1"), Place::new(1, [10, 0, 0, 1].into()), "each listener counts its own");
    }

    proptest! {
        /// Whoever comes and leaves: no address has more than the limit, nobody is refused below it, and nothing is kept of
        /// those that have left.
        #[test]
        fn it_counts(limit in 1usize..5, steps in proptest::collection::vec((0u8..4, any::<bool>()), 0..200)) {
            let (mut crowd, mut there) = (Crowd::default(), [0; 4]);
            for (who, comes) in steps {
                let (place, count) = (Place::new(0, [10, 0, 0, who].into()), &mut there[usize::from(who)]);
                if comes {
                    prop_assert_eq!(crowd.enter(place, limit), *count < limit);
                    *count = limit.min(*count + 1);
                } else if *count > 0 {
                    crowd.leave(place);
                    *count -= 1;
                }
                prop_assert_eq!(crowd.0.len(), there.iter().filter(|count| **count > 0).count());
            }
        }
    }
}
