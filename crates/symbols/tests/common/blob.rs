//! An encoder of BTF, written from the format's description.

/// Builds a blob type by type; numbers count up from `first`.
pub(crate) struct Blob {
    types: Vec<u8>,
    strings: Vec<u8>,
    next: u32,
    string_base: u32,
}

impl Blob {
    pub(crate) fn new() -> Self {
        Self::split(1, 0)
    }

    /// A blob that goes on where another ends. It has no empty string of its own.
    pub(crate) fn split(next: u32, string_base: u32) -> Self {
        Self {
            types: Vec::new(),
            strings: vec![0; usize::from(string_base == 0)],
            next,
            string_base,
        }
    }

    pub(crate) fn string(&mut self, s: &str) -> u32 {
        if s.is_empty() {
            return 0;
        }
        let at = u32::try_from(self.strings.len()).unwrap() + self.string_base;
        self.strings.extend(s.as_bytes());
        self.strings.push(0);
        at
    }

    pub(crate) fn add(
        &mut self,
        name: &str,
        kind: u32,
        count: u32,
        last: u32,
        rest: &[u32],
    ) -> u32 {
        self.add_flagged(name, kind, false, count, last, rest)
    }

    pub(crate) fn add_flagged(
        &mut self,
        name: &str,
        kind: u32,
        flag: bool,
        count: u32,
        last: u32,
        rest: &[u32],
    ) -> u32 {
        let name = self.string(name);
        let info = (u32::from(flag) << 31) | (kind << 24) | count;
        for w in [name, info, last].iter().chain(rest) {
            self.types.extend(w.to_le_bytes());
        }
        self.next += 1;
        self.next - 1
    }

    /// A struct (4) or union (5): members are name, type, bit offset, bits.
    pub(crate) fn composite(
        &mut self,
        kind: u32,
        name: &str,
        size: u32,
        members: &[(&str, u32, u32, u32)],
    ) -> u32 {
        let flag = members.iter().any(|m| m.3 != 0);
        let mut rest = Vec::new();
        for (n, ty, bit, bits) in members {
            rest.extend([self.string(n), *ty, bit | (bits << 24)]);
        }
        let count = u32::try_from(members.len()).unwrap();
        self.add_flagged(name, kind, flag, count, size, &rest)
    }

    pub(crate) fn int(&mut self, name: &str, size: u32, encoding: u32) -> u32 {
        self.add(name, 1, 0, size, &[(encoding << 24) | (size * 8)])
    }

    pub(crate) fn finish(&self) -> Vec<u8> {
        let (t, s) = (self.types.len(), self.strings.len());
        let mut out = vec![0x9f, 0xeb, 1, 0];
        for w in [24, 0, t, t, s] {
            out.extend(u32::try_from(w).unwrap().to_le_bytes());
        }
        out.extend(&self.types);
        out.extend(&self.strings);
        out
    }
}

/// A blob with every kind in it.
pub(crate) fn every_kind() -> Blob {
    let mut b = Blob::new();
    let int = b.int("int", 4, 1);
    let uint = b.int("unsigned int", 4, 0);
    let char_ = b.int("char", 1, 3);
    let long = b.int("long unsigned int", 8, 0);
    let bool_ = b.int("_Bool", 1, 4);
    let task = b.next + 12;
    let ptr = b.add("", 2, 0, task, &[]);
    let comm = b.add("", 3, 0, 0, &[char_, uint, 16]);
    let inner = b.composite(5, "", 8, &[("word", long, 0, 0), ("low", uint, 0, 0)]);
    let colour = {
        let (red, green) = (b.string("RED"), b.string("GREEN"));
        b.add_flagged("colour", 6, true, 2, 4, &[red, u32::MAX, green, 7])
    };
    let wide = {
        let big = b.string("BIG");
        b.add("wide", 19, 1, 8, &[big, 5, 0x8000_0000])
    };
    let fwd = b.add("nowhere", 7, 0, 0, &[]);
    let fwd_ptr = b.add("", 2, 0, fwd, &[]);
    let pid = b.add("pid_t", 8, 0, int, &[]);
    let volatile = b.add("", 9, 0, pid, &[]);
    let constant = b.add("", 10, 0, volatile, &[]);
    let restrict = b.add("", 11, 0, ptr, &[]);
    let tag = b.add("user", 18, 0, int, &[]);
    let made = b.composite(
        4,
        "task_struct",
        80,
        &[
            ("pid", constant, 0, 0),
            ("flag_a", uint, 32, 1),
            ("flag_b", uint, 33, 5),
            ("comm", comm, 64, 0),
            ("parent", ptr, 192, 0),
            ("", inner, 256, 0),
            ("colour", colour, 320, 0),
            ("alive", bool_, 352, 0),
            ("far", fwd_ptr, 384, 0),
            ("next", restrict, 448, 0),
            ("wide", wide, 512, 0),
            ("tagged", tag, 576, 0),
        ],
    );
    assert_eq!(made, task);
    let proto = {
        let x = b.string("x");
        b.add("", 13, 1, int, &[x, ptr])
    };
    let func = b.add("do_it", 12, 1, proto, &[]);
    let var = b.add("current_task", 14, 0, ptr, &[1]);
    b.add(".data..percpu", 15, 1, 64, &[var, 0, 8]);
    b.add("double", 16, 0, 8, &[]);
    b.add("kfunc", 17, 0, func, &[u32::MAX]);
    // The same name again, smaller.
    b.composite(4, "twice", 4, &[("a", int, 0, 0)]);
    b.composite(4, "twice", 8, &[("b", int, 32, 0)]);
    b
}
