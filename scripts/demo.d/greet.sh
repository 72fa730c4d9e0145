#!/bin/sh
cat /etc/motd
echo "$GREETING, $1."
echo "This image was built on $(cat /etc/built-on) and runs on $(uname -sr), host name $(hostname)."
