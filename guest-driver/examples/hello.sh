rf mkdir -p /greetings
echo hello | rf put - /greetings/one     # under its name when it is whole, and durable
rf cp -r /greetings /copies              # within the server: nothing passes through rf
rf chmod -R go-w /copies
rf get -r /copies "${TMPDIR:-/tmp}"      # put -r goes the other way
rf cat /copies/one
rf rm -r /greetings /copies
