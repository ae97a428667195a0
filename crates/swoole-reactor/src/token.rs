//! Names for what the reactor holds, and the table they point into.

use std::fmt;

/// Names one source of events: a listener, a stream, a datagram socket, a watched descriptor, signals.
///
/// A token is a slot and the generation of that slot. It is never reused within a reactor's life (a slot
/// retires after 2³² owners), so a token that outlives its source is a clean [`Error::NoSuchToken`], never
/// somebody else's connection. Tokens of different reactors have nothing to do with each other.
///
/// [`Error::NoSuchToken`]: crate::Error::NoSuchToken
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token(u64);

impl Token {
    pub(crate) fn new(slot: u32, generation: u32) -> Self {
        Self(u64::from(slot) << 32 | u64::from(generation))
    }

    /// The token as a number, to be kept where a type cannot go.
    pub fn as_u64(self) -> u64 {
        self.0
    }

    /// The token that [`as_u64`](Self::as_u64) gave. Any other number is at worst a token of nothing.
    pub fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// The slot: small, dense, and reused. Good as an index into a table of the caller's own, as long as
    /// the whole token is compared before the entry is believed.
    pub fn slot(self) -> u32 {
        (self.0 >> 32) as u32
    }

    pub(crate) fn generation(self) -> u32 {
        self.0 as u32
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({}.{})", self.slot(), self.generation())
    }
}

/// A table of values by [`Token`].
pub(crate) struct Slots<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

impl<T> Slots<T> {
    pub(crate) fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    /// The token that the next [`insert`](Self::insert) returns, or `None` when all 2³² slots are taken.
    pub(crate) fn next_token(&self) -> Option<Token> {
        match self.free.last() {
            Some(&slot) => Some(Token::new(slot, self.slots[slot as usize].generation)),
            // The last number is kept for the driver's own descriptors.
            None => u32::try_from(self.slots.len()).ok().filter(|&n| n < u32::MAX).map(|n| Token::new(n, 0)),
        }
    }

    /// Puts `value` into a free slot; `None` when all are taken.
    pub(crate) fn insert(&mut self, value: T) -> Option<Token> {
        let token = self.next_token()?;
        match self.free.pop() {
            Some(slot) => self.slots[slot as usize].value = Some(value),
            None => self.slots.push(Slot { generation: 0, value: Some(value) }),
        }
        Some(token)
    }

    pub(crate) fn get(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get(token.slot() as usize)?;
        slot.value.as_ref().filter(|_| slot.generation == token.generation())
    }

    pub(crate) fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.slot() as usize)?;
        slot.value.as_mut().filter(|_| slot.generation == token.generation())
    }

    /// Takes the value out; its token is stale from now on.
    pub(crate) fn remove(&mut self, token: Token) -> Option<T> {
        self.get(token)?;
        let slot = &mut self.slots[token.slot() as usize];
        // A slot whose generations are used up stays empty for ever rather than repeat a token.
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(token.slot());
        }
        slot.value.take()
    }

    /// The token of what is in a slot now.
    pub(crate) fn current(&self, slot: u32) -> Option<Token> {
        let entry = self.slots.get(slot as usize).filter(|entry| entry.value.is_some())?;
        Some(Token::new(slot, entry.generation))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_token_finds_nothing_although_its_slot_has_a_new_owner() {
        let mut slots = Slots::new();
        let first = slots.insert("first").unwrap();
        assert_eq!(slots.remove(first), Some("first"));
        let second = slots.insert("second").unwrap();

        assert_eq!(first.slot(), second.slot());
        assert_ne!(first, second);
        assert_eq!(slots.get(first), None);
        assert_eq!(slots.get_mut(first), None);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.get(second), Some(&"second"));
    }

    #[test]
    fn next_token_foretells_insert() {
        let mut slots = Slots::new();
        for reuse in [false, true, false] {
            let foretold = slots.next_token();
            let token = slots.insert(()).unwrap();
            assert_eq!(Some(token), foretold);
            if reuse {
                slots.remove(token);
            }
        }
    }

    #[test]
    fn a_slot_at_its_last_generation_retires() {
        let mut slots = Slots::new();
        let token = slots.insert(1).unwrap();
        slots.slots[0].generation = u32::MAX;
        let last = Token::new(token.slot(), u32::MAX);
        assert_eq!(slots.remove(last), Some(1));
        assert_eq!(slots.insert(2).unwrap().slot(), 1);
        assert_eq!(slots.get(last), None);
    }

    #[test]
    fn numbers_and_tokens_convert() {
        let token = Token::new(7, 9);
        assert_eq!(Token::from_u64(token.as_u64()), token);
        assert_eq!((token.slot(), token.generation()), (7, 9));
    }
}
