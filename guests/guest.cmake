# Bare-metal guests: freestanding, linked by guests/lib/guest.ld, turned into 32-bit ELF because that is what multiboot
# (and QEMU's PVH loader beside it) takes. 64-bit guests enter long mode by themselves.
set(GUEST_FLAGS -ffreestanding -nostdlib -static -fno-pic -fno-pie -no-pie -mgeneral-regs-only -mno-red-zone -fno-stack-protector -fno-strict-aliasing
    -fno-asynchronous-unwind-tables -fcf-protection=none -O2 -g0 -std=gnu11 -Wall -Wextra -Wno-unused-parameter
    -I${CMAKE_CURRENT_LIST_DIR}/lib)
set(GUEST_LIB ${CMAKE_CURRENT_LIST_DIR}/lib/start.S ${CMAKE_CURRENT_LIST_DIR}/lib/lib.c)
set(GUEST_LD ${CMAKE_CURRENT_LIST_DIR}/lib/guest.ld)
find_program(OBJCOPY objcopy REQUIRED)
set(GUEST_LIB_DIR ${CMAKE_CURRENT_LIST_DIR}/lib)

# add_guest_image(IMAGE WIDTH SOURCE...): the rule that makes IMAGE, 32 or 64 bits wide inside, of the library and the sources.
function(add_guest_image image width)
    set(sources ${GUEST_LIB} ${ARGN})
    file(GLOB headers CONFIGURE_DEPENDS ${GUEST_LIB_DIR}/*.h)
    foreach(source ${ARGN})
        get_filename_component(dir ${source} DIRECTORY)
        file(GLOB more CONFIGURE_DEPENDS ${dir}/*.h)
        list(APPEND headers ${more})
    endforeach()
    list(REMOVE_DUPLICATES headers)
    get_filename_component(name ${image} NAME_WE)
    add_custom_command(OUTPUT ${image}
        COMMAND ${CMAKE_C_COMPILER} -m${width} ${GUEST_FLAGS} -Wl,--build-id=none -Wl,-z,noexecstack -Wl,--no-warn-rwx-segments
            -Wl,-z,max-page-size=4096 -T ${GUEST_LD} ${sources} -o ${image}.linked
        COMMAND ${OBJCOPY} -O elf32-i386 ${image}.linked ${image}
        DEPENDS ${sources} ${GUEST_LD} ${headers}
        COMMENT "Guest ${name}" VERBATIM)
endfunction()
