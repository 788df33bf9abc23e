//! A pickle machine that can only build plain values.
//!
//! Globals are values with a name, calls are kept as what was called and with what; nothing is
//! ever executed. Sizes come from the file, so nothing is allocated before its bytes are there.

use std::collections::HashMap;

/// Values deeper than this are refused, so that no file can exhaust the stack.
const MAX_DEPTH: usize = 64;
/// More values than this are refused.
const MAX_VALUES: usize = 4_000_000;

/// What a pickle holds.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// Python's None.
    None,
    /// True or False.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// An integer that does not.
    Big,
    /// A float.
    Float(f64),
    /// A string.
    Text(String),
    /// Bytes.
    Bytes(Vec<u8>),
    /// A tuple or list.
    List(Vec<Item>),
    /// A dictionary, in the order it was filled.
    Dict(Vec<(Item, Item)>),
    /// A name, `module.name`.
    Global(String),
    /// A function and what it was called with; not called.
    Call(Box<Item>, Box<Item>),
    /// Something stored outside the pickle, by its identity.
    Stored(Box<Item>),
}

/// On the stack, containers are handles, so that a memoised list keeps growing after it was noted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Handle(usize);

enum Node {
    Leaf(Item),
    List(Vec<Handle>),
    Dict(Vec<(Handle, Handle)>),
    Call(Handle, Handle, Vec<(Handle, Handle)>),
    Stored(Handle),
    Mark,
}

struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Handle>,
    memo: HashMap<u32, Handle>,
}

/// Reads one pickle from the start of `bytes`; returns its value and its length in bytes.
pub fn load(bytes: &[u8]) -> Result<(Item, usize), String> {
    let mut machine =
        Machine { bytes, at: 0, nodes: Vec::new(), stack: Vec::new(), memo: HashMap::new() };
    let top = machine.run()?;
    let mut budget = MAX_VALUES;
    let item = machine.resolve(top, MAX_DEPTH, &mut budget)?;
    Ok((item, machine.at))
}

impl Machine<'_> {
    fn run(&mut self) -> Result<Handle, String> {
        loop {
            let code = self.take(1)?[0];
            match code {
                0x80 => {
                    let version = self.take(1)?[0];
                    if version > 5 {
                        return Err(format!("pickle protocol {version} is not known"));
                    }
                }
                0x95 => drop(self.take(8)?),
                b'.' => return self.pop(),
                b'(' => self.push(Node::Mark)?,
                b'0' => drop(self.pop()?),
                b'N' => self.leaf(Item::None)?,
                0x88 => self.leaf(Item::Bool(true))?,
                0x89 => self.leaf(Item::Bool(false))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.leaf(Item::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.take(1)?[0];
                    self.leaf(Item::Int(value.into()))?;
                }
                b'M' => {
                    let value = u16::from_le_bytes(self.array()?);
                    self.leaf(Item::Int(value.into()))?;
                }
                0x8a => {
                    let length = self.take(1)?[0].into();
                    let item = long(self.take(length)?);
                    self.leaf(item)?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.leaf(Item::Float(value))?;
                }
                b'X' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    self.text(length)?;
                }
                0x8c => {
                    let length = self.take(1)?[0].into();
                    self.text(length)?;
                }
                b'U' | b'C' => {
                    let length = self.take(1)?[0].into();
                    self.raw(length)?;
                }
                b'T' | b'B' => {
                    let length = u32::from_le_bytes(self.array()?) as usize;
                    self.raw(length)?;
                }
                b')' | b']' => self.push(Node::List(Vec::new()))?,
                b'}' => self.push(Node::Dict(Vec::new()))?,
                b't' | b'l' => {
                    let items = self.pop_to_mark()?;
                    self.push(Node::List(items))?;
                }
                0x85..=0x87 => {
                    let count = usize::from(code - 0x84);
                    let from = self.stack.len().checked_sub(count).ok_or_else(underflow)?;
                    let items = self.stack.split_off(from);
                    self.push(Node::List(items))?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.extend(vec![item])?;
                }
                b'e' => {
                    let items = self.pop_to_mark()?;
                    self.extend(items)?;
                }
                b's' => {
                    let value = self.pop()?;
                    let key = self.pop()?;
                    self.set(vec![key, value])?;
                }
                b'u' => {
                    let items = self.pop_to_mark()?;
                    self.set(items)?;
                }
                b'q' => {
                    let index = self.take(1)?[0].into();
                    self.memoise(index)?;
                }
                b'r' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.memoise(index)?;
                }
                0x94 => {
                    let index = self.memo.len() as u32;
                    self.memoise(index)?;
                }
                b'h' => {
                    let index = self.take(1)?[0].into();
                    self.recall(index)?;
                }
                b'j' => {
                    let index = u32::from_le_bytes(self.array()?);
                    self.recall(index)?;
                }
                b'c' => {
                    let module = self.line()?;
                    let name = self.line()?;
                    self.leaf(Item::Global(format!("{module}.{name}")))?;
                }
                0x93 => {
                    let (name, module) = (self.pop()?, self.pop()?);
                    match (self.node(module)?, self.node(name)?) {
                        (Node::Leaf(Item::Text(module)), Node::Leaf(Item::Text(name))) => {
                            let global = format!("{module}.{name}");
                            self.leaf(Item::Global(global))?;
                        }
                        _ => return Err("a global is not named by strings".to_owned()),
                    }
                }
                b'R' | 0x81 => {
                    let (arguments, function) = (self.pop()?, self.pop()?);
                    self.push(Node::Call(function, arguments, Vec::new()))?;
                }
                // The state given to an object (a module's version records) is not needed.
                b'b' => drop(self.pop()?),
                b'Q' => {
                    let identity = self.pop()?;
                    self.push(Node::Stored(identity))?;
                }
                other => return Err(format!("pickle opcode {other:#04x} is not one of tensors'")),
            }
        }
    }

    fn take(&mut self, length: usize) -> Result<&[u8], String> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.bytes.len());
        let Some(end) = end else { return Err("the file ends inside its pickle".to_owned()) };
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn line(&mut self) -> Result<String, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n').ok_or("a name has no end")?;
        let line = std::str::from_utf8(&rest[..end]).map_err(|_| "a name is not text")?.to_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn text(&mut self, length: usize) -> Result<(), String> {
        let text = std::str::from_utf8(self.take(length)?).map_err(|_| "a string is not UTF-8")?;
        let item = Item::Text(text.to_owned());
        self.leaf(item)
    }

    fn raw(&mut self, length: usize) -> Result<(), String> {
        let item = Item::Bytes(self.take(length)?.to_vec());
        self.leaf(item)
    }

    fn leaf(&mut self, item: Item) -> Result<(), String> {
        self.push(Node::Leaf(item))
    }

    fn push(&mut self, node: Node) -> Result<(), String> {
        if self.nodes.len() >= MAX_VALUES {
            return Err(format!("the pickle holds more than {MAX_VALUES} values"));
        }
        self.nodes.push(node);
        self.stack.push(Handle(self.nodes.len() - 1));
        Ok(())
    }

    fn pop(&mut self) -> Result<Handle, String> {
        self.stack.pop().ok_or_else(underflow)
    }

    fn node(&self, handle: Handle) -> Result<&Node, String> {
        self.nodes.get(handle.0).ok_or_else(underflow)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Handle>, String> {
        let mark = self.stack.iter().rposition(|&h| matches!(self.nodes[h.0], Node::Mark));
        let Some(mark) = mark else { return Err(underflow()) };
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn top(&mut self) -> Result<&mut Node, String> {
        let handle = *self.stack.last().ok_or_else(underflow)?;
        self.nodes.get_mut(handle.0).ok_or_else(underflow)
    }

    fn extend(&mut self, items: Vec<Handle>) -> Result<(), String> {
        match self.top()? {
            Node::List(list) => list.extend(items),
            _ => return Err("a value is appended to what is not a list".to_owned()),
        }
        Ok(())
    }

    fn set(&mut self, items: Vec<Handle>) -> Result<(), String> {
        if !items.len().is_multiple_of(2) {
            return Err("a dictionary key has no value".to_owned());
        }
        let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        match self.top()? {
            Node::Dict(dict) | Node::Call(_, _, dict) => dict.extend(pairs),
            _ => return Err("a key is set on what is not a dictionary".to_owned()),
        }
        Ok(())
    }

    fn memoise(&mut self, index: u32) -> Result<(), String> {
        let handle = *self.stack.last().ok_or_else(underflow)?;
        self.memo.insert(index, handle);
        Ok(())
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let handle = *self.memo.get(&index).ok_or("a value is used before it is made")?;
        self.stack.push(handle);
        Ok(())
    }

    /// The value behind a handle; shared parts are copied, within the budget.
    fn resolve(&self, handle: Handle, depth: usize, budget: &mut usize) -> Result<Item, String> {
        if depth == 0 {
            return Err(format!("values nest deeper than {MAX_DEPTH}"));
        }
        *budget = budget.checked_sub(1).ok_or("the pickle repeats too many values")?;
        let mut one = |handle| self.resolve(handle, depth - 1, budget);
        Ok(match self.node(handle)? {
            Node::Leaf(item) => item.clone(),
            Node::List(items) => {
                Item::List(items.iter().map(|&h| one(h)).collect::<Result<_, _>>()?)
            }
            Node::Dict(pairs) => Item::Dict(
                pairs
                    .iter()
                    .map(|&(k, v)| Ok((one(k)?, one(v)?)))
                    .collect::<Result<_, String>>()?,
            ),
            Node::Call(function, arguments, pairs) => {
                let (function, arguments) = (one(*function)?, one(*arguments)?);
                // An ordered dictionary is made by a call and filled afterwards.
                if function == Item::Global("collections.OrderedDict".to_owned()) {
                    Item::Dict(
                        pairs
                            .iter()
                            .map(|&(k, v)| Ok((one(k)?, one(v)?)))
                            .collect::<Result<_, String>>()?,
                    )
                } else {
                    Item::Call(Box::new(function), Box::new(arguments))
                }
            }
            Node::Stored(identity) => Item::Stored(Box::new(one(*identity)?)),
            Node::Mark => return Err("a mark is used as a value".to_owned()),
        })
    }
}

fn underflow() -> String {
    "the pickle takes more values than it holds".to_owned()
}

/// A little-endian two's complement integer.
fn long(bytes: &[u8]) -> Item {
    if bytes.len() > 8 {
        return Item::Big;
    }
    let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
    let mut wide = if negative { [0xff; 8] } else { [0; 8] };
    wide[..bytes.len()].copy_from_slice(bytes);
    Item::Int(i64::from_le_bytes(wide))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_dictionary_filled_after_it_was_noted() {
        // {'a': [1, 2]} by protocol 2.
        let bytes = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01]q\x02(K\x01K\x02es.";
        let (item, length) = load(bytes).unwrap();
        let list = Item::List(vec![Item::Int(1), Item::Int(2)]);
        assert_eq!(item, Item::Dict(vec![(Item::Text("a".into()), list)]));
        assert_eq!(length, bytes.len());
    }

    #[test]
    fn a_call_is_kept_not_made() {
        let (item, _) = load(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.").unwrap();
        let Item::Call(function, _) = item else { panic!("{item:?}") };
        assert_eq!(*function, Item::Global("os.system".into()));
    }

    #[test]
    fn a_list_inside_itself_is_refused() {
        let error = load(b"\x80\x02]q\x00h\x00a.").unwrap_err();
        assert!(error.contains("deeper"), "{error}");
    }

    #[test]
    fn integers_of_any_width() {
        assert_eq!(load(b"\x80\x02\x8a\x01\xff.").unwrap().0, Item::Int(-1));
        assert_eq!(load(b"\x80\x02\x8a\x02\x00\x80.").unwrap().0, Item::Int(-32768));
        assert_eq!(load(b"\x80\x02\x8a\x00.").unwrap().0, Item::Int(0));
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_a_value_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = load(&bytes);
        }

        #[test]
        fn opcodes_in_any_order_end_in_a_value_or_an_error(
            codes in proptest::collection::vec(
                proptest::sample::select(&b"()]}tNKaeusqhRbQ.0\x85\x86\x94\x88"[..]), 0..120)
        ) {
            let _ = load(&codes);
        }
    }
}
