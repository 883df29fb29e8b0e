"""The daemon: watches the volume, decides when to back it up, and does so, for months.

`service` puts it together; `worker` is the one thread that works; `agenda` holds what is asked of it,
`schedule`, `calendars` and `pace` say when something is due, `watching` what changed; `runs` does one run.
`board` and `status` say how it stands, `reporting` how runs went; `control` and `asking` are the two ends of
its socket, `notify` speaks to systemd. `measuring` makes metrics of all that and `exposing` shows them;
`telling` has others told, by `ping` and `hook`, and `standing` remembers which of these work.
`protection` unpacks a configuration, for the command line too.
Nothing is imported here, so that `smsnap` stays quick.
"""
