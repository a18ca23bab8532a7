# Reads "word id" lines; when they end, kills what is on the list and removes the folder $1, unless told to leave it.
folder=$1
folder_stays=
postmasters=
others=
containers=
# Whatever PATH our starter had, rm and sleep must be found.
PATH=${PATH:+$PATH:}/usr/bin:/bin
trap '' HUP INT TERM

without() {
    left=
    for each in $1; do
        [ "$each" = "$2" ] || left="$left $each"
    done
    echo "$left"
}

# A zombie that nobody has waited for yet counts as ended, where /proc can tell.
alive() {
    kill -0 "$1" 2>/dev/null || return 1
    read -r stat 2>/dev/null <"/proc/$1/stat" || return 0
    case ${stat##*) } in
        Z*) return 1 ;;
    esac
    return 0
}

# Waits up to $1 tenths of a second for all of $2; false when one is left.
ended() {
    tenths=$1
    while :; do
        left=
        for each in $2; do
            if alive "$each"; then left=$each; fi
        done
        [ -z "$left" ] && return 0
        [ "$tenths" -le 0 ] && return 1
        tenths=$((tenths - 1))
        sleep 0.1
    done
}

while read -r word id; do
    case $word in
        pg) postmasters="$postmasters $id" ;;
        kill) others="$others $id" ;;
        container) containers="$containers $id" ;;
        gone)
            postmasters=$(without "$postmasters" "$id")
            others=$(without "$others" "$id")
            ;;
        folder-stays) folder_stays=yes ;;
        keep) exit 0 ;;
    esac
done

for pid in $others; do kill -KILL "$pid"; done
# SIGCONT, because a stopped process would not see its SIGQUIT.
for pid in $postmasters; do kill -QUIT "$pid"; kill -CONT "$pid"; done
for id in $containers; do docker rm -fv "$id" </dev/null & done
# A postmaster gives its own children 5 s before it kills them.
if ! ended 80 "$postmasters $others"; then
    for pid in $postmasters; do kill -KILL "$pid"; done
    ended 20 "$postmasters"
fi
wait
[ -n "$folder_stays" ] && exit 0
rm -rf -- "$folder" || { sleep 1; rm -rf -- "$folder"; }
