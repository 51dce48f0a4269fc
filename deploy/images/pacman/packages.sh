#!/bin/sh
# Packs what Debian's git consists of, and a program that wants another package, for pacman.
set -eu
mkdir -p /srv/packages
pack() { # NAME DEPENDENCY, with its files in /build/NAME
    mkdir -p "/build/$1"
    {
        printf 'pkgname = %s\npkgbase = %s\npkgver = 2-1\npkgdesc = for a test image\nurl = https://example.com\n' "$1" "$1"
        printf 'builddate = 1\npackager = devfleet\nsize = 1\narch = any\n'
        [ -z "$2" ] || printf 'depend = %s\n' "$2"
    } > "/build/$1/.PKGINFO"
    (cd "/build/$1" && tar -czf "/srv/packages/$1-2-1-any.pkg.tar.gz" --owner=0 --group=0 .PKGINFO $(ls))
}
mkdir -p /build/git/usr/bin /build/git/usr/lib /build/git/usr/share /build/answer-tool/opt /build/answer-data/opt
cp -P /usr/bin/git /usr/bin/git-upload-pack /usr/bin/git-receive-pack /build/git/usr/bin/
cp -RP /usr/lib/git-core /build/git/usr/lib/
cp -RP /usr/share/git-core /build/git/usr/share/
printf '#!/bin/sh\nread answer < /opt/answer-data && echo "the answer tool says $answer"\n' > /build/answer-tool/opt/answer-tool
chmod 0755 /build/answer-tool/opt/answer-tool
echo 42 > /build/answer-data/opt/answer-data
pack git ''
pack ca-certificates ''
pack answer-data ''
pack answer-tool answer-data
cd /srv/packages
repo-add --quiet box.db.tar.gz ./*.pkg.tar.gz
