#!/usr/bin/env python3
"""Makes evtx/security.golden.json: what other programs read in evtx/security.evtx.

Needs evtxexport (Debian's libevtx-utils; tried with 20181227) for what records say, and python-evtx
(pip install python-evtx==0.8.1) for where they lie. Run it in this folder.
"""
import calendar, json, re, subprocess, time
import xml.etree.ElementTree as ET

import Evtx.Evtx

LOG = "evtx/security.evtx"
NS = "{http://schemas.microsoft.com/win/2004/08/events/event}"


def export(form):
    command = ["evtxexport", "-f", form, LOG]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def micros(text, form):
    seconds, fraction = re.fullmatch(r"(.*)\.(\d{9})(?: UTC|Z)", text).groups()
    return calendar.timegm(time.strptime(seconds, form)) * 1000000 + int(fraction) // 1000


def places():
    with Evtx.Evtx.Evtx(LOG) as log:
        return [(r.record_num(), r.offset(), r.size()) for c in log.chunks() for r in c.records()]


def written():
    found = re.findall(r"^Event number\s*: (\d+)\nWritten time\s*: (.*)$", export("text"), re.M)
    return {int(n): micros(t, "%b %d, %Y %H:%M:%S") for n, t in found}


def records():
    events = [ET.fromstring(x) for x in re.findall(r"<Event .*?</Event>", export("xml"), re.S)]
    when = written()
    for (number, offset, size), event in zip(places(), events, strict=True):
        system = event.find(NS + "System")
        member = lambda name: system.find(NS + name)
        stamp = member("TimeCreated").get("SystemTime")
        yield {
            "offset": offset, "len": size, "record_id": number, "written": when[number],
            "event_record_id": int(member("EventRecordID").text),
            "time": micros(stamp, "%Y-%m-%dT%H:%M:%S"),
            "program": member("Provider").get("Name"), "event_id": int(member("EventID").text),
            "level": int(member("Level").text), "channel": member("Channel").text,
            "host": member("Computer").text, "pid": int(member("Execution").get("ProcessID")),
            "data": [[d.get("Name"), d.text or ""] for d in event.find(NS + "EventData")],
        }


with open("evtx/security.golden.json", "w") as f:
    json.dump(list(records()), f, indent=1)
    f.write("\n")
