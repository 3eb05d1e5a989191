//! Builds of which types alone are known, read by these and by what is found in the image.

use crate::common::{KERNELS, cell, make};

#[test]
fn a_build_of_which_types_alone_are_known_is_read_by_them() {
    // Of these no symbol file was to be had; their globals lie where another build has them.
    let all = [
        ("WIN10_X64_10240_17770", KERNELS[2]),
        ("WIN10_X64_15063", KERNELS[2]),
        ("WIN10_X64_16299", KERNELS[3]),
    ];
    for (i, (types, (_, guid))) in all.into_iter().enumerate() {
        let seed = 41 + i as u32;
        let unknown = "0123456789ABCDEF0123456789ABCDEF";
        let options = ["--record-guid", unknown, "--types-of", types];
        let m = make(types, guid, seed, &options);
        let info = m.build("windows/info");
        let symbols = cell(&info, 0, "symbols");
        // Another build may have the same fields.
        assert!(symbols.contains("nearest"), "{types}: {symbols}");
        if i == 0 {
            assert!(symbols.contains("WIN10_X64"), "{types}: {symbols}");
        }
        let t = m.build("windows/pslist");
        let pids: Vec<String> = (0..t.rows.len()).map(|r| cell(&t, r, "pid")).collect();
        let listed = m.processes().filter(|p| p["in_active_list"] == true);
        let want: Vec<String> = listed.map(|p| p["pid"].to_string()).collect();
        assert_eq!(pids, want, "{types}");
        let t = m.build("windows/vadinfo");
        let areas = m.running().map(|p| p["vads"].as_array().unwrap().len());
        assert_eq!(t.rows.len(), areas.sum::<usize>(), "{types}");
        let t = m.build("windows/psscan");
        assert!(t.rows.len() >= want.len(), "{types}");
    }
}
